"""Output files of commands: they are opened before a run, so that an error shows at once."""

from pathlib import Path
from typing import Any

import click

from pegasusx_ref.cli.messages import UsageError

DPI = 150


def check_writable(_context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Check that a file can be opened for writing, and leave it unchanged: a callback of options."""
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
    """Write a text file; characters that UTF-8 cannot encode, as in some file names, are escaped.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.write_text(content, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def save_figure(figure: Any, path: Path, option: str = "--out") -> None:
    """Write a figure in the format of the file's extension.

    Args:
        figure: of matplotlib.
        path: the file.
        option: name of its option, for messages.

    Raises:
        UsageError: the format is unknown, or the file cannot be written.
    """
    check_format(figure, path, option)
    try:
        figure.savefig(path, dpi=DPI)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror or error}") from None


def check_format(figure: Any, path: Path, option: str = "--out") -> None:
    """Check that matplotlib can write the format of a file's extension.

    Raises:
        UsageError: it cannot.
    """
    if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
        problem = f"extension {path.suffix!r} is not an image format" if path.suffix else "the extension is missing"
        raise UsageError(f"{option} {path}: {problem}: use .png, .svg or .pdf")
