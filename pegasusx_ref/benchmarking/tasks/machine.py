"""What the machine can do at this moment: large matrix products, and reading memory; by the fastest library at hand."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pegasusx_ref.benchmarking.cases import Case
from pegasusx_ref.benchmarking.timing import Wait, timed, waiter
from pegasusx_ref.benchmarking.work import work_of
from pegasusx_ref.errors import ExtraError

LEAST = 0.3  # seconds that a measurement takes at least
TIMES = 3  # calls that it takes at least
# On a CPU and on a GPU: rows of a square matrix; numbers in an array, more than any cache holds (1 and 4 GiB).
SIZES, LENGTHS = (2048, 8192), (2**28, 2**30)

Measured = tuple[Callable[[], Any], Wait, float]  # a call, what waits for its end, and how much work it does


def machine_task(case: Case, device: str) -> Callable[[int], float]:
    """Make the machine's limit ready: the least time for the case's work at the rate of the moment; see `task_of`.

    Raises:
        ExtraError: no library here computes in the case's dtype on the device.
    """
    amount, unit = work_of(case)
    measurements = products(case.dtype, device) if unit == "FLOP" else reads(device)
    if not measurements:
        raise ExtraError(f"no library here measures {case.dtype} on {device}: pip install 'pegasusx-ref[torch]'")
    return lambda _: amount / max(best_rate(*measurement) for measurement in measurements)


def best_rate(call: Callable[[], Any], wait: Wait, work: float) -> float:
    """Take the best of some calls: what disturbs one only ever makes it slower.

    Args:
        call: does the work.
        wait: waits until the device is done.
        work: that a call does.

    Returns:
        Work a second.
    """
    times: list[float] = []
    end = time.perf_counter() + LEAST
    while len(times) < TIMES or time.perf_counter() < end:
        times.append(timed(call, wait))
    return work / min(times)


def torch_here() -> Any:
    """Load torch; None where it is not installed, or does not load."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch


def products(dtype: str, device: str) -> list[Measured]:
    """Make square matrix products ready, in FLOP, in every library that has them.

    Args:
        dtype: of the matrices.
        device: where they lie.
    """
    on_cuda = device.startswith("cuda")
    size = SIZES[on_cuda]
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    found: list[Measured] = []
    if not on_cuda and dtype == "float32":
        out = np.empty_like(a)
        found.append((lambda: np.matmul(a, b, out=out), waiter("numpy", device), 2 * size**3))
    if (torch := torch_here()) is not None:
        x, y = (torch.from_numpy(matrix).to(device, getattr(torch, dtype)) for matrix in (a, b))
        z = torch.empty_like(x)
        found.append((lambda: torch.mm(x, y, out=z), waiter("torch", device), 2 * size**3))
    return found


def reads(device: str) -> list[Measured]:
    """Make reading a large array ready, in bytes, in every library that has it.

    Args:
        device: where the array lies.
    """
    on_cuda = device.startswith("cuda")
    length = LENGTHS[on_cuda]
    x = np.random.default_rng(0).random(1 if on_cuda else length, dtype=np.float32)
    found: list[Measured] = []
    if not on_cuda:
        found.append((lambda: np.dot(x, x), waiter("numpy", device), x.nbytes))
    if (torch := torch_here()) is not None:
        y = torch.rand(length, device=device) if on_cuda else torch.from_numpy(x)
        found.append((lambda: y.sum(), waiter("torch", device), 4 * length))
    return found
