"""What every input must come to: a result, or one of the package's errors, within limits of time and memory."""

import os
import signal
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.access import watching

from pegasusx_ref import PegasusXError

MAX_SECONDS = 2.0  # of processor time until an input is refused
MAX_WAIT = 10  # seconds; longer is a hang
MAX_PEAK = 300 * 2**20  # bytes above the start, of an input that is refused
MAX_MESSAGE = 1100  # characters
OVERRIDES = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))  # of the writing direction
RESULT, REFUSED = "result", "refused"


class Finding(Exception):
    """An input that came to something else."""


class Wrong(Exception):
    """A result that is silently wrong."""


class Hang(BaseException):
    """Raised by the alarm; not an `Exception`, so that no reader takes it for damage to a file."""


def judge(
    read: Callable[[], Any],
    use: Callable[[Any], Any] = lambda found: None,
    path: Path | None = None,
    inside: Path | None = None,
    name: str | None = None,
) -> str:
    """Judge one input.

    Args:
        read: reads the input; its errors name the file.
        use: takes what `read` returns, and raises `Wrong` where that is not what the input says.
        path: in every error of `read`; None for an argument.
        inside: the folder that nothing outside of which may be read or written; `path` if None.
        name: may be in an error of `read` in place of the path.

    Returns:
        "result" or "refused".

    Raises:
        Finding: what the outcome was instead.
    """
    old_handler = signal.signal(signal.SIGALRM, _raise_hang)
    signal.alarm(MAX_WAIT)
    Path("/proc/self/clear_refs").write_text("5")
    resident, start = _memory("VmRSS"), time.process_time()
    error: PegasusXError | None = None
    try:
        with warnings.catch_warnings(record=True) as caught, watching(inside or path) as outside:
            warnings.simplefilter("always")
            found = read()
            path = None
            use(found)
    except PegasusXError as refusal:
        error = refusal
    except Wrong as wrong:
        raise Finding(f"silently wrong: {wrong}") from wrong
    except Hang:
        raise Finding(f"hang: longer than {MAX_WAIT} s") from None
    except BaseException as foreign:
        raise Finding(f"foreign {type(foreign).__name__}: {str(foreign)[:200]}") from foreign
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old_handler)
    seconds, peak = time.process_time() - start, _memory("VmHWM") - resident
    if outside:
        raise Finding(f"outside: {', '.join(outside)[:300]}")
    for warning in caught:
        if issubclass(warning.category, DeprecationWarning):  # of a library, for its developers
            continue
        _check_text(f"{warning.category.__name__}: {warning.message}")
        if issubclass(warning.category, RuntimeWarning):
            raise Finding(f"warning: {warning.message}")
    if error is None:
        return RESULT
    _check_error(error, path, name)
    if seconds > MAX_SECONDS:
        raise Finding(f"slow: {seconds:.1f} s ({error})")
    if peak > MAX_PEAK:
        raise Finding(f"memory: {peak / 2**20:.0f} MB above the start ({error})")
    return REFUSED


def _check_error(error: BaseException, path: Path | None, name: str | None) -> None:
    text = str(error)
    _check_text(text)
    if path is not None and str(path) not in text and (name is None or name not in text):
        raise Finding(f"unnamed file: {text}")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) and not _is_of_parser(cause):
            raise Finding(f"memory: asked for more than there is ({text})")
        cause = cause.__cause__ or cause.__context__


def _is_of_parser(error: MemoryError) -> bool:
    """Tell whether Python's parser gave up on deep nesting, which is a MemoryError too."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith("ast.py")


def _check_text(text: str) -> None:
    if len(text) > MAX_MESSAGE:
        raise Finding(f"message of {len(text):,} characters: {text[:200]}…")
    for character in text:
        if (
            unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
            or unicodedata.bidirectional(character) in OVERRIDES
        ):
            raise Finding(f"unprintable {character!r} in {text!r}")


def _raise_hang(_signal: int, _frame: FrameType | None) -> None:
    raise Hang


def _memory(counter: str) -> int:
    """Return a counter of this process's memory in bytes."""
    status = Path(f"/proc/{os.getpid()}/status").read_text("utf-8")
    return 1024 * int(status.split(f"{counter}:")[1].split()[0])
