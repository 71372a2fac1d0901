"""The standard streams of the process: failing to write results is an error, failing to write messages is none."""

import io
import sys
from contextlib import suppress
from typing import Any

from pegasusx_ref.errors import OutputError, reason


class ResultsFile(io.FileIO):
    """Standard output: the first write that fails is an error, and what follows it is dropped."""

    has_failed = False

    def write(self, content: Any, /) -> Any:
        """Write bytes.

        Raises:
            BrokenPipeError: nobody reads the results any more.
            OutputError: they cannot be written.
        """
        if self.has_failed:
            return memoryview(content).nbytes
        try:
            return super().write(content)
        except OSError as error:
            self.has_failed = True
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(f"standard output: cannot be written: {reason(error)}") from error


class MessagesFile(io.FileIO):
    """Standard error: messages that cannot be written are dropped."""

    def write(self, content: Any, /) -> Any:
        """Write bytes."""
        with suppress(OSError):
            return super().write(content)
        return memoryview(content).nbytes


def open_streams() -> None:
    """Replace Python's objects of the standard streams; those of closed streams are None."""
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole process
    sys.stdout = text_stream(ResultsFile(1, "w", closefd=False), sys.stdout)
    sys.stderr = text_stream(MessagesFile(2, "w", closefd=False), sys.stderr)


def text_stream(raw: io.FileIO, like: Any) -> io.TextIOWrapper:
    """Write text as Python's own stream does; characters that the encoding lacks are escaped.

    Args:
        raw: the file.
        like: Python's stream; None if it was closed.
    """
    encoding = "utf-8" if like is None else like.encoding
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.fileno() == 2 or raw.isatty()
    )
