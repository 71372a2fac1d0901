"""What a reader may touch: files inside its folder and those of Python; no programs, no connections."""

import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Libraries read their own files when they are used for the first time.
NOWHERE = "/nonexistent"  # a cache of the Hub
READ = (
    NOWHERE,
    *{sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()},
    str(Path(__file__).parents[2]),
    "/usr",
    "/lib",
    "/proc",
    "/sys",
    "/dev/null",
    "/dev/urandom",
    "/etc/localtime",
    "/etc/mime.types",
)
WRITTEN = (f"{tempfile.gettempdir()}/tmp", "/dev/null", "/proc/self/clear_refs")
PROGRAMS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.link", "os.symlink", "shutil.rmtree")
LOCAL = ("127.0.0.1", "localhost", "::1")
_watched: tuple[str, list[str]] | None = None  # the folder, and what happened outside


@contextmanager
def watching(folder: Path | None) -> Iterator[list[str]]:
    """Collect what happens outside a folder while the block runs; nothing for None."""
    global _watched
    found: list[str] = []
    _watched = None if folder is None else (str(folder), found)
    try:
        yield found
    finally:
        _watched = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    folder, found = _watched
    if event in PROGRAMS:
        found.append(f"{event} {arguments[0]!r}"[:200])
    elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in LOCAL:
        found.append(f"connection to {arguments[1]!r}")
    elif event in CHANGES and arguments[-1] in (-1, None):  # else relative to an open folder
        found += [
            f"{event} {path!r}"
            for path in arguments[event == "os.symlink" : 2]
            if _is_outside(path, (folder, *WRITTEN))
        ]
    elif event == "open":
        path, mode, flags = arguments
        is_written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if _is_outside(path, (folder, *WRITTEN) if is_written else (folder, *WRITTEN, *READ)):
            found.append(f"{'written' if is_written else 'read'} {path!r} ({mode})")


def _is_outside(path: Any, folders: tuple[str, ...]) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    text = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - links are not followed
    return not text.startswith(folders)


sys.addaudithook(_hook)
