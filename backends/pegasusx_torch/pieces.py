"""Many tokens some at a time on a CPU: what lies between stays in the cache, and what is large lies in large pages."""

from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor

ROWS = 1024  # tokens of a piece: so many that weights, which every piece reads again, cost little
LARGE = 2**22  # bytes of a tensor from which NumPy asks the system for large pages; torch never does
ALIGNMENT = 64  # bytes: what torch gives its own tensors


def by_rows(function: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
    """Call a function that treats every token on its own: all at once, or on a CPU some tokens at a time.

    Args:
        function: takes and gives tokens, (B, T, features).
        x_BTD: tokens (B, T, D).
    """
    num_rows = x_BTD.numel() // x_BTD.shape[-1]
    if x_BTD.device.type != "cpu" or num_rows <= ROWS:
        return function(x_BTD)
    x_rows = x_BTD.reshape(1, num_rows, x_BTD.shape[-1])
    size = -(-num_rows // -(-num_rows // ROWS))
    first = function(x_rows[:, :size])
    found_rows = roomy((1, num_rows, first.shape[-1]), first.dtype, first.device)
    found_rows[:, :size] = first
    for start in range(size, num_rows, size):
        found_rows[:, start : start + size] = function(x_rows[:, start : start + size])
    return found_rows.reshape(*x_BTD.shape[:-1], found_rows.shape[-1])


def roomy(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make an uninitialized tensor; where it is a large one on a CPU, in memory of NumPy's.

    To be given a page of memory takes longer than to fill it with numbers, and Linux gives 2 MB at a time to those who
    ask, where its setting is "madvise". NumPy does ask.
    """
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = torch.from_numpy(np.empty((size + ALIGNMENT) // 4 + 1, dtype=np.float32)).view(torch.uint8)
    start = -memory.data_ptr() % ALIGNMENT
    return memory[start : start + size].view(dtype).view(shape)
