"""Files that commands write: whether one can be written is known before the run, not after it."""

from pathlib import Path

import click

from pegasusx_ref.cli.messages import UsageError


def writable(_context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Open a file before anything long runs, and leave it as it was."""
    if path is not None:
        is_new = not path.exists()
        try:
            path.open("a").close()
        except OSError as error:
            raise UsageError(f"{option.opts[0]} {path}: {error.strerror or error}") from None
        if is_new:
            path.unlink()
    return path


def write_report(path: Path, content: str) -> None:
    """Write a report; characters that UTF-8 lacks, as file names may hold them, are spelled out.

    Raises:
        UsageError: the file cannot be written any more.
    """
    try:
        path.write_text(content, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
