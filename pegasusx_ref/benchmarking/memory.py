"""Peak memory of work above what was there before it: weights, libraries."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter(NamedTuple):
    """Two functions around a piece of work.

    Attributes:
        start: forgets earlier peaks.
        peak: gives the bytes at the peak since then, above what was there when the meter was made; None where nobody
            knows.
    """

    start: Callable[[], Any]
    peak: Callable[[], int | None]


def meter(implementation: str, device: str) -> Meter:
    """Give what measures an implementation's memory on a device.

    Args:
        implementation: whose memory it is: CuPy and torch each have a pool on a GPU.
        device: "cpu", or CUDA's.
    """
    if device.startswith("cuda"):
        return cupy_meter() if implementation == "cupy" else torch_meter(device)
    return process_meter() if can_forget_peaks() else Meter(lambda: None, lambda: None)


def process_meter() -> Meter:
    """Measure this process by the kernel's own figures.

    Free memory is returned to the system once. Before every repetition, each would have to get it anew, in its time.
    """
    gc.collect()
    give_back()
    before = resident("VmRSS")

    def start() -> None:
        gc.collect()
        CLEAR.write_text("5", encoding="ascii")  # VmHWM starts again from what is resident now

    return Meter(start, lambda: resident("VmHWM") - before)


def can_forget_peaks() -> bool:
    """Tell whether the kernel lets a process start its peak anew, as Linux does."""
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return False
    return "VmHWM" in STATUS.read_text(encoding="utf-8")


def resident(figure: str) -> int:
    """Read VmRSS (resident now) or VmHWM (its peak) of this process, in bytes."""
    return 1024 * int(re.findall(rf"{figure}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))[0])


def give_back() -> None:
    """Have the C library return free memory to the system, where it can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def torch_meter(device: str) -> Meter:
    """Measure what torch's pool holds of a CUDA device at its peak, recorded graphs included."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    before = int(torch.cuda.memory_reserved(device))
    return Meter(lambda: None, lambda: int(torch.cuda.max_memory_reserved(device)) - before)


def cupy_meter() -> Meter:
    """Measure what CuPy's pool holds, which only grows while nobody empties it."""
    import cupy

    pool = cupy.get_default_memory_pool()
    gc.collect()
    pool.free_all_blocks()
    before = int(pool.total_bytes())
    return Meter(lambda: None, lambda: int(pool.total_bytes()) - before)
