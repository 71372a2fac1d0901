"""Taking the time on a processor or a device that works on by itself."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

Wait = Callable[[], Any]


def waiter(implementation: str, device: str) -> Wait:
    """Give what waits until a device has done all it was told.

    Args:
        implementation: whose device it is: CuPy's and torch's know nothing of each other.
        device: "cpu" has nothing to wait for.
    """
    if not device.startswith("cuda"):
        return lambda: None
    if implementation == "cupy":
        import cupy

        return lambda: cupy.cuda.Device().synchronize()
    import torch

    return lambda: torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], wait: Wait) -> float:
    """Take the time of a call, in seconds, up to when the device is done."""
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


class Clock:
    """Notes when each step of a search has its logits.

    Args:
        wait: waits until the device is done.
    """

    WARMING = 2  # intervals: caches are laid out, steps recorded

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self.times: list[float] = []

    def tick(self) -> None:
        """Note the time of a step."""
        self._wait()
        self.times.append(time.perf_counter())

    def per_token(self) -> float:
        """Give the median interval between steps, in seconds, without the first two."""
        intervals = [later - earlier for earlier, later in pairwise(self.times)]
        return statistics.median(intervals[self.WARMING :])
