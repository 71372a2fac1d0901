"""Messages on stderr, one line each: errors of users, notes, and Ctrl-C."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from pegasusx_ref.errors import PegasusXError, printable, reason

BROKEN_PIPE = 141  # the exit code that shells use for SIGPIPE


class UsageError(click.ClickException):
    """An error that the user can correct: one line on stderr, exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Interrupted(click.ClickException):
    """Ctrl-C: one line on stderr, and the exit code that shells use for SIGINT."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("Interrupted")

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message without "Error:"."""
        message(self.message)


@contextmanager
def one_line_messages() -> Iterator[None]:
    """Report errors of users, of the machine and of the package in one line each; and warnings, no warning twice."""
    noted: set[str] = set()

    def note_once(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in noted:
            noted.add(str(message))
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of overflows: results or an error show them
        warnings.showwarning = note_once  # restored with the filters
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except PegasusXError as error:
            raise UsageError(str(error)) from None
        except click.UsageError as error:
            if error.ctx is None or "Usage:" in error.message:  # a group without a command prints its help
                raise
            hint = f"(see {error.ctx.command_path} --help)"
            raise UsageError(f"{' '.join(error.format_message().split()).rstrip('.')} {hint}") from None
        except BrokenPipeError:  # nobody reads the results any more, as after "| head"
            raise SystemExit(BROKEN_PIPE) from None
        except OSError as error:
            raise UsageError(f"{error.filename or 'the system'}: {reason(error)}") from None
        except MemoryError as error:
            raise UsageError(f"out of memory: use a shorter text or a smaller model ({reason(error)})") from None
        except RecursionError:
            raise UsageError("an input is nested too deeply") from None
        except KeyboardInterrupt:
            raise Interrupted from None


def note(text: str) -> None:
    """Print a note in one line on stderr."""
    message(f"Note: {' '.join(text.split())}")


def message(text: str) -> None:
    """Print a line on stderr; `print`, so that rich puts it above its progress bars."""
    print(printable(text), file=sys.stderr, flush=True)
