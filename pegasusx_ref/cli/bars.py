"""Progress bars on a terminal, by rich."""

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from pegasusx_ref.errors import printable


def progress_bars(shown: bool = True) -> Progress:
    """Create progress bars that disappear when done; only a terminal shows them."""
    console = Console(stderr=True, highlight=False)
    columns = (DescriptionColumn(""), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    hidden = not (shown and console.is_terminal)
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=hidden)


class DescriptionColumn(TextColumn):
    """The description of a task, which may contain any file name."""

    def render(self, task: Task) -> Text:
        """Return the description as it is, with control characters escaped."""
        return Text(printable(task.description))
