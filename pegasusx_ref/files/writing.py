"""Replace files: readers see the old content or the new one, whatever happens meanwhile."""

import atexit
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pegasusx_ref.errors import OutputError, PegasusXError

try:
    import fcntl
except ImportError:  # Windows: leftovers are not cleared
    fcntl = None  # type: ignore[assignment]

NAME_LENGTH = 48  # characters of a file's name in the names of its temporaries, which are at most 255 bytes long
TOKEN_BYTES = 8
TEMPORARY_NAME = re.compile(rf"(\..*\.)[0-9a-f]{{{2 * TOKEN_BYTES}}}\.tmp", re.DOTALL)  # the group names the file
_live: set[Path] = set()  # this process's temporaries


def write_text(path: Path, text: str) -> None:
    """Replace a text file; characters that UTF-8 cannot encode, as in some file names, are escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace one file; see `replacing_all`."""
    with replacing_all([path]) as (temporary,):
        yield temporary


@contextmanager
def replacing_all(paths: Sequence[Path], obsolete: Callable[[], Iterable[Path]] = tuple) -> Iterator[list[Path]]:
    """Write several files under temporary names, and rename them in the order of `paths` when all are on the disk.

    After an error or a kill each file is either the old one or the complete new one. The temporaries of an earlier
    process that was killed are removed; those of a running one are locked and stay. A symbolic link is replaced, not
    its target, which may be in a shared cache. A process that has the old file mapped into memory keeps the old
    content.

    Args:
        paths: the files, in one folder; it is created if it is missing.
        obsolete: lists files that the new ones supersede; they are removed before the last one is replaced.

    Returns:
        A context manager that yields a temporary path for each file; the files are replaced when the block ends.

    Raises:
        OutputError: a file cannot be written, or is not a regular file.
    """
    try:
        with ExitStack() as stack:
            temporaries = [stack.enter_context(_temporary(path)) for path in paths]
            yield [temporary for temporary, _ in temporaries]
            for _, descriptor in temporaries:
                os.fsync(descriptor)
            with _folder_lock(paths[0].parent):
                for path, (temporary, _) in zip(paths, temporaries, strict=True):
                    if path == paths[-1]:
                        for old in [*obsolete()]:
                            old.unlink(missing_ok=True)
                    temporary.replace(path)
    except PegasusXError:
        raise
    except OSError as error:
        place = paths[0] if len(paths) == 1 else paths[0].parent
        raise OutputError(f"{place}: cannot be written: {error.strerror or error}") from error


def check_replaceable(path: Path) -> None:
    """Check that a file can be replaced, and leave it as it is.

    Raises:
        OutputError: it cannot be written, or is not a regular file.
    """
    with suppress(_LeaveAsIs), replacing(path):
        raise _LeaveAsIs


class _LeaveAsIs(Exception):
    """Ends a replacement without its last step."""


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, int]]:
    """Create a temporary beside a file, with the file's permissions, and remove it at the end of the block.

    Returns:
        A context manager that yields its path, and a descriptor that holds a lock on it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:NAME_LENGTH]}."
    _remove_leftovers(path.parent, prefix)
    temporary, descriptor = _create_locked(path.parent, prefix)
    try:
        with suppress(FileNotFoundError):
            old = path.stat()
            if not stat.S_ISREG(old.st_mode):
                raise OutputError(f"{path}: is not a regular file: give the path of a file, new or to be replaced")
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            temporary.chmod(stat.S_IMODE(old.st_mode))
        yield temporary, descriptor
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        _live.discard(temporary)


@atexit.register
def remove_temporaries() -> None:
    """Remove the temporaries of this process, as before an exit that leaves out the ends of its blocks."""
    for temporary in list(_live):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_live.clear)  # they are the parent's


def _create_locked(folder: Path, prefix: str) -> tuple[Path, int]:
    while True:
        temporary = folder / f"{prefix}{secrets.token_hex(TOKEN_BYTES)}.tmp"
        _live.add(temporary)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        # Between its creation and its lock another process may take the file for a leftover.
        if _lock(descriptor) and os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)
        _live.discard(temporary)


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove the temporaries of processes that ended without removing them: nobody holds a lock on these."""
    if fcntl is None:
        return
    for leftover in [entry for entry in folder.iterdir() if is_temporary(entry, prefix)]:
        with suppress(OSError):  # another process removed it, or it belongs to another user
            descriptor = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if _lock(descriptor):
                    leftover.unlink()
            finally:
                os.close(descriptor)


def is_temporary(path: Path, prefix: str = "") -> bool:
    """Return whether a file has the name of a temporary, of the file with this prefix if one is given."""
    match = TEMPORARY_NAME.fullmatch(path.name)
    return match is not None and prefix in ("", match[1])


def _lock(descriptor: int) -> bool:
    """Lock a file until its descriptor is closed; return whether nobody else holds the lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextmanager
def locking(path: Path) -> Iterator[bool]:
    """Lock a file for the block; it is created if it is missing, and stays.

    Args:
        path: the file.

    Returns:
        A context manager that yields whether nobody else holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time rename files in a folder, and write its entries to the disk at the end."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
