"""Messages on stderr, one line each: errors of users, notes, and Ctrl-C."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from pegasusx_ref.errors import PegasusXError


class UsageError(click.ClickException):
    """An error that the user can correct: one line on stderr, exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Interrupted(click.ClickException):
    """Ctrl-C: one line on stderr, and the exit code that shells use for SIGINT."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("Interrupted")

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message without "Error:"."""
        click.echo(self.message, file=file, err=file is None)


class MainGroup(click.Group):
    """The group of all commands: it prints errors, warnings and Ctrl-C in one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; see `one_line_messages`."""
        with one_line_messages():
            return super().invoke(ctx)


@contextmanager
def one_line_messages() -> Iterator[None]:
    """Report errors of the package and of click, warnings and Ctrl-C in one line each, no warning twice."""
    noted: set[str] = set()

    def note_once(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in noted:
            noted.add(str(message))
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = note_once  # restored with the filters
        try:
            yield
        except PegasusXError as error:
            raise UsageError(str(error)) from None
        except click.UsageError as error:
            if error.ctx is None or "Usage:" in error.message:  # a group without a command prints its help
                raise
            hint = f"(see {error.ctx.command_path} --help)"
            raise UsageError(f"{error.format_message().rstrip('.')} {hint}") from None
        except KeyboardInterrupt:
            raise Interrupted from None


def note(message: str) -> None:
    """Print a note in one line on stderr; `print`, so that rich puts it above its progress bars."""
    print(f"Note: {' '.join(message.split())}", file=sys.stderr)
