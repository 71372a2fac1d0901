"""The machine's limit at the moment: large matrix products or memory reads, by the fastest library installed."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from pegasusx_ref.benchmarking.cases import Case
from pegasusx_ref.benchmarking.tasks.timing import Synchronize, synchronizer, timed
from pegasusx_ref.benchmarking.work import work_of
from pegasusx_ref.errors import ExtraError

MIN_SECONDS, MIN_CALLS = 0.3, 3  # of a measurement
# On a CPU and on a GPU: rows of a square matrix; numbers in an array larger than any cache (1 and 4 GiB).
MATRIX_ROWS, ARRAY_LENGTHS = (2048, 8192), (2**28, 2**30)

Kernel = tuple[Callable[[], Any], Synchronize, float]  # a call, a wait for its end, and its amount of work


def machine_task(case: Case, device: str) -> Callable[[int], float]:
    """Prepare the lower bound for the time of the case's work, at the machine's rate of the moment; see `task_for`.

    Raises:
        ExtraError: no installed library computes in the case's dtype on the device.
    """
    amount, unit = work_of(case)
    kernels = matrix_products(case.dtype, device) if unit == "FLOP" else memory_reads(device)
    if not kernels:
        raise ExtraError(
            f"no installed library computes in {case.dtype} on {device}: pip install 'pegasusx-ref[torch]'"
        )
    return lambda tokens: amount / max(best_rate(*kernel) for kernel in kernels)


def best_rate(call: Callable[[], Any], synchronize: Synchronize, work: float) -> float:
    """Return the work per second of the fastest of some calls: disturbances only ever slow a call down."""
    times: list[float] = []
    end = perf_counter() + MIN_SECONDS
    while len(times) < MIN_CALLS or perf_counter() < end:
        times.append(timed(call, synchronize))
    return work / min(times)


def import_torch() -> Any:
    """Import torch; None where it is missing or does not load."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch


def matrix_products(dtype: str, device: str) -> list[Kernel]:
    """Prepare a square matrix product, its work in FLOP, in each library and dtype that may be the fastest."""
    on_cuda = device.startswith("cuda")
    rows = MATRIX_ROWS[on_cuda]
    a, b = np.random.default_rng(0).standard_normal((2, rows, rows), dtype=np.float32)
    kernels: list[Kernel] = []
    if not on_cuda and dtype == "float32":
        out = np.empty_like(a)
        kernels.append((lambda: np.matmul(a, b, out=out), synchronizer("numpy", device), 2 * rows**3))
    if (torch := import_torch()) is not None:
        # A CPU without instructions for half precision is faster if the operands are converted.
        is_converted = not on_cuda and dtype in ("bfloat16", "float16")
        dtypes = [dtype, "float32"] if is_converted else [dtype]
        kernels += [torch_product(torch, a, b, each, device) for each in dtypes]
    return kernels


def torch_product(torch: Any, a: np.ndarray, b: np.ndarray, dtype: str, device: str) -> Kernel:
    """Prepare torch's product of two square matrices in a dtype."""
    x, y = (torch.from_numpy(matrix).to(device, getattr(torch, dtype)) for matrix in (a, b))
    z = torch.empty_like(x)
    return lambda: torch.mm(x, y, out=z), synchronizer("torch", device), 2 * len(a) ** 3


def memory_reads(device: str) -> list[Kernel]:
    """Prepare reading a large array, its work in bytes, in each library that supports the device."""
    on_cuda = device.startswith("cuda")
    length = ARRAY_LENGTHS[on_cuda]
    x = np.random.default_rng(0).random(1 if on_cuda else length, dtype=np.float32)
    kernels: list[Kernel] = []
    if not on_cuda:
        kernels.append((lambda: np.dot(x, x), synchronizer("numpy", device), x.nbytes))
    if (torch := import_torch()) is not None:
        y = torch.rand(length, device=device) if on_cuda else torch.from_numpy(x)
        kernels.append((lambda: y.sum(), synchronizer("torch", device), 4 * length))
    return kernels
