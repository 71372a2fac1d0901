"""Documents that commands read: files or standard input, as text and as token ids."""

import sys
from pathlib import Path

from pegasusx_ref.cli.messages import UsageError, note
from pegasusx_ref.errors import reason
from pegasusx_ref.files.reading import read_bytes, read_limited

MAX_SIZE = 2**26  # bytes


def read_document(path: Path) -> tuple[str, str]:
    """Read a document, or standard input for "-".

    Returns:
        Its name, and its text.

    Raises:
        UsageError: it cannot be read, is too large, is not UTF-8 text, or is empty.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        raw = read_limited(sys.stdin.buffer, MAX_SIZE) if str(path) == "-" else read_bytes(path, MAX_SIZE)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{name}: {reason(error)}{remedy(path)}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 text (byte {error.start} is {raw[error.start]:#04x})") from None
    if "\0" in text:
        raise UsageError(f"{name}: a binary file, not text (it contains a zero byte)")
    if not text.strip():
        raise UsageError(f"{name}: the document is empty")
    return name, text


def remedy(path: Path) -> str:
    """Return how else a FIFO or a device can be read."""
    is_special = path.exists() and not (path.is_file() or path.is_dir())
    return ' or pipe it to standard input ("-")' if is_special else ""


def note_dropped(name: str, num_dropped: int, limit: str) -> None:
    """Print a note if tokens of a document were dropped.

    Args:
        name: of the document.
        num_dropped: number of dropped tokens.
        limit: description of the limit.
    """
    if num_dropped:
        note(f"{name} is longer than {limit}: the last {num_dropped} were dropped")
