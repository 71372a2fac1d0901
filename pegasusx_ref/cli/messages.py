"""What the command line says beside its results: one line each, on stderr."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from pegasusx_ref.errors import PegasusXError


class UsageError(click.ClickException):
    """Something that the user can mend: one line on stderr, exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@contextmanager
def plainly() -> Iterator[None]:
    """Turn the package's errors into usage errors and its warnings into notes, each note once."""
    noted: set[str] = set()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in noted:
            noted.add(str(message))
            # By print, so that on a terminal it goes above the progress bars.
            print(f"Note: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = note  # undone with the filters
        try:
            yield
        except PegasusXError as error:
            raise UsageError(str(error)) from None
