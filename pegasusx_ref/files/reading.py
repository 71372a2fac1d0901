"""Read files that may hold anything: regular files of a limited size, and one kind of error."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pegasusx_ref.errors import InputError, PegasusXError, printable, reason, shown
from pegasusx_ref.files.foreign import recognized

CHUNK_SIZE = 2**16  # bytes
MAX_NAME_LENGTH = 255  # of a file or a folder; most file systems count bytes


@contextmanager
def reading(path: Path | str, expected: str, error_class: type[PegasusXError], remedy: str = "") -> Iterator[None]:
    """Turn whatever goes wrong inside the block into one error: a reader's boundary.

    The block parses a file into checked values; what it returns is used without further checks.

    Args:
        path: the file that is read, or another name of what is read.
        expected: what it should be, such as "a safetensors file".
        error_class: of the error.
        remedy: what to do; ends the message. Without one, a file that is recognized as something else is called that.
    """
    remedy = f": {remedy}" if remedy else ""
    try:
        yield
    except error_class as error:
        if printable(str(path)) in str(error):
            raise
        raise error_class(f"{path}: {error}{remedy}") from error
    except OSError as error:
        raise error_class(f"{path}: cannot be read: {reason(error)}{remedy}") from error
    except Exception as error:
        if not remedy and (found := _recognized(path)):
            raise error_class(f"{path}: not {expected} ({found})") from error
        raise error_class(f"{path}: not {expected} ({reason(error)}){remedy}") from error


def _recognized(path: Path | str) -> str | None:
    try:
        with open_regular(Path(path)) as file:
            return recognized(file, str(path))
    except (OSError, ValueError):  # not a file, but another name of what is read
        return None


def as_path(value: Any) -> Path:
    """Convert a path that a user passes.

    Raises:
        InputError: it is not a str or a path, or cannot be the name of a file.
    """
    try:
        path = Path(value)
        os.fsencode(path)
    except Exception:  # also of the object's own code
        raise InputError(f"{shown(value)} is not a path: pass a str or a pathlib.Path") from None
    if max(map(len, path.parts), default=0) > MAX_NAME_LENGTH:
        raise InputError(f"{shown(value)} is not a path: a name in it has more than {MAX_NAME_LENGTH} characters")
    return path


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; unlike `open`, never wait for a FIFO or a device.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        check_regular(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(status: os.stat_result) -> None:
    """Check the status of a file.

    Raises:
        OSError: it is a directory, a FIFO, a socket or a device.
    """
    if stat.S_ISDIR(status.st_mode):
        raise OSError("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file but a FIFO, socket or device: copy its content to a file")


def read_bytes(path: Path, max_size: int) -> bytes:
    """Read a whole regular file.

    Args:
        path: the file.
        max_size: in bytes.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    with open_regular(path) as file:
        return read_limited(file, max_size)


def read_limited(file: IO[bytes], max_size: int) -> bytes:
    """Read the rest of an open file or stream; see `read_bytes`."""
    content = bytearray()
    while chunk := file.read(CHUNK_SIZE):
        content += chunk
        if len(content) > max_size:
            raise OSError(f"larger than {max_size:,} bytes, the limit for this kind of file")
    if chunk is None:  # a file of the kernel, or a stream that another program made non-blocking
        raise OSError("it waits for data: copy its content to a file")
    return bytes(content)
