"""Zip archives whose directory and members have limited sizes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from pegasusx_ref.files.reading import open_regular

MAX_DIRECTORY_SIZE = 2**24  # bytes: 100,000 members
IS_ENCRYPTED = 0x1


@contextmanager
def open_zip(path: Path, compressions: tuple[int, ...]) -> Iterator[ZipFile]:
    """Open a zip archive; for use inside `reading`.

    Args:
        path: the file.
        compressions: the methods that a member may be compressed with, such as `zipfile.ZIP_STORED`.

    Returns:
        A context manager that yields the archive; no member is encrypted, and no two have the same name.

    Raises:
        ValueError: another archive; other errors are those of `zipfile`.
    """
    with open_regular(path) as raw, LimitedReads(raw) as file, ZipFile(file) as archive:
        file.limit = None
        members = archive.infolist()
        for member in members:
            _check(member, compressions)
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two members have the same name")
        yield archive


def _check(member: ZipInfo, compressions: tuple[int, ...]) -> None:
    if member.flag_bits & IS_ENCRYPTED:
        raise ValueError(f"member {member.filename!r} is encrypted")
    if member.compress_type not in compressions:
        raise ValueError(f"member {member.filename!r} is compressed by method {member.compress_type}: save it again")


class LimitedReads(io.BufferedReader):
    """A file that refuses to read much at once: formats have lengths that would be allocated before they are checked.

    An archive's directory, for instance, is read at once, whatever its size.
    """

    limit: int | None = MAX_DIRECTORY_SIZE

    def read(self, size: int | None = -1) -> bytes:
        """Read as `io.BufferedReader` does; a ValueError where that is more than the limit."""
        if self.limit is None:
            return super().read(size)
        return self._checked(super().read(self.limit + 1 if size is None or size < 0 else min(size, self.limit + 1)))

    def readline(self, size: int | None = -1) -> bytes:
        """Read a line; a ValueError where it is longer than the limit."""
        return super().readline(size) if self.limit is None else self._checked(super().readline(self.limit + 1))

    def _checked(self, content: bytes) -> bytes:
        if self.limit is not None and len(content) > self.limit:
            raise ValueError(f"a part of it is larger than {self.limit:,} bytes")
        return content
