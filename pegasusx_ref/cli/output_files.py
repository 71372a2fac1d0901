"""Figures as files."""

from io import BytesIO
from pathlib import Path
from typing import Any

from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.files.writing import replacing

DPI = 150


def save_figure(figure: Any, path: Path, option: str = "--out") -> None:
    """Write a figure in the format of the file's extension.

    Args:
        figure: of matplotlib.
        path: the file.
        option: name of its option, for messages.

    Raises:
        UsageError: the format is unknown.
        OutputError: the file cannot be written.
    """
    check_format(figure, path, option)
    content = BytesIO()  # after an error matplotlib may leave a file open
    figure.savefig(content, dpi=DPI, format=path.suffix[1:])
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def check_format(figure: Any, path: Path, option: str = "--out") -> None:
    """Check that matplotlib can write the format of a file's extension.

    Raises:
        UsageError: it cannot.
    """
    if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
        problem = f"extension {path.suffix!r} is not an image format" if path.suffix else "the extension is missing"
        raise UsageError(f"{option} {path}: {problem}: use .png, .svg or .pdf")
