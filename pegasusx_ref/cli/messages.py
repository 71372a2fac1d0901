"""What the command line says beside its results: one line each, on stderr."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from pegasusx_ref.errors import PegasusXError


class UsageError(click.ClickException):
    """Something that the user can mend: one line on stderr, exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Interrupted(click.ClickException):
    """Ctrl-C: one line on stderr, and the exit code that shells give a command ended by that signal."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("Interrupted")

    def show(self, file: IO[Any] | None = None) -> None:
        """Say so, and not that it is an error."""
        click.echo(self.message, file=file, err=file is None)


@contextmanager
def plainly() -> Iterator[None]:
    """Turn the package's errors into usage errors, its warnings into notes, each note once, and Ctrl-C into an end."""
    noted: set[str] = set()

    def see(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in noted:
            noted.add(str(message))
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = see  # undone with the filters
        try:
            yield
        except PegasusXError as error:
            raise UsageError(str(error)) from None
        except KeyboardInterrupt:
            raise Interrupted from None


def note(message: str) -> None:
    """Say something in one line on stderr; by print, so that on a terminal it goes above the progress bars."""
    print(f"Note: {' '.join(message.split())}", file=sys.stderr)
