"""Timing on a processor, or on a device that computes asynchronously."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np

WARM_UP_STEPS = 2  # of a search: caches are allocated, CUDA graphs are recorded

Synchronize = Callable[[], Any]


def synchronizer(implementation: str, device: str) -> Synchronize:
    """Return a function that waits until a device has finished its work; CuPy and torch each wait for their own."""
    if not device.startswith("cuda"):
        return lambda: None
    if implementation == "cupy":
        import cupy

        return lambda: cupy.cuda.Device().synchronize()
    import torch

    return lambda: torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], synchronize: Synchronize) -> float:
    """Return the seconds that a call takes until the device has finished."""
    synchronize()
    start = perf_counter()
    call()
    synchronize()
    return perf_counter() - start


def seconds_per_step(search: Callable[[Callable[[], None]], Any], synchronize: Synchronize) -> float:
    """Return the median time between two steps of a search, which calls its argument after each step."""
    times: list[float] = []

    def note_time() -> None:
        synchronize()
        times.append(perf_counter())

    search(note_time)
    return median_interval(times)


def median_interval(times: Sequence[float], warm_up: int = WARM_UP_STEPS) -> float:
    """Return the median interval between successive times, without the first intervals."""
    return float(np.median(np.diff(times)[warm_up:]))
