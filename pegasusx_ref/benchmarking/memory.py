"""Peak memory of a workload above what was allocated before it, such as weights and libraries."""

import ctypes
import gc
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter(NamedTuple):
    """A pair of functions to call before and after a workload.

    Attributes:
        reset: forgets earlier peaks.
        peak: returns the bytes at the peak since the reset above those allocated when the meter was made; None where
            the system cannot measure them.
    """

    reset: Callable[[], Any]
    peak: Callable[[], int | None]


NO_METER = Meter(lambda: None, lambda: None)


def memory_meter(implementation: str, device: str) -> Meter:
    """Return the meter for an implementation on "cpu" or a CUDA device.

    On a CPU it reads the kernel's own counters, which see allocations of every library however short; sampling misses
    those, and the maximum of `getrusage` cannot be reset. On a GPU, CuPy and torch each have a memory pool.
    """
    gc.collect()
    reset: Callable[[], Any] = lambda: None  # noqa: E731 - pools need no reset: only the warm-up comes before
    if device.startswith("cuda"):
        if implementation == "cupy":
            import cupy

            pool = cupy.get_default_memory_pool()
            pool.free_all_blocks()
            allocated = peak = pool.total_bytes  # it only grows from here
        else:
            import torch

            torch.cuda.empty_cache()  # reserved memory, because recorded CUDA graphs keep theirs unreported
            allocated, peak = (partial(f, device) for f in (torch.cuda.memory_reserved, torch.cuda.max_memory_reserved))
    elif can_reset_peak():
        return_free_memory()  # once: returned before every repetition, it would have to be requested again in its time
        reset, allocated, peak = reset_peak, partial(resident_bytes, "VmRSS"), partial(resident_bytes, "VmHWM")
    else:
        return NO_METER
    before = int(allocated())
    return Meter(reset, lambda: int(peak()) - before)


def can_reset_peak() -> bool:
    """Check whether the kernel lets a process reset its peak memory, as Linux does."""
    try:
        reset_peak()
    except OSError:
        return False
    return "VmHWM" in STATUS.read_text(encoding="utf-8")


def reset_peak() -> None:
    """Set the peak memory of this process to what is resident now."""
    gc.collect()
    CLEAR_REFS.write_text("5", encoding="ascii")


def resident_bytes(counter: str) -> int:
    """Read VmRSS (resident now) or VmHWM (its peak) of this process, in bytes."""
    return 1024 * int(re.findall(rf"{counter}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))[0])


def return_free_memory() -> None:
    """Return free memory of the C library to the system, where it is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
