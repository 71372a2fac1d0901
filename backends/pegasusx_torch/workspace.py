"""Large tensors on a CPU, in memory that is used again: see `pegasusx_numpy.workspace`."""

import pegasusx_numpy.workspace as numpy_workspace
import torch
from torch import Tensor


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate an uninitialized tensor.

    Args:
        shape: of the tensor.
        like: a tensor on the same device, with the same dtype if `dtype` is None.
        dtype: of the tensor.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape, dtype=dtype)
    dtype = dtype or like.dtype
    memory = numpy_workspace.take(torch.Size(shape).numel() * dtype.itemsize)
    if memory is None:
        return like.new_empty(shape, dtype=dtype)
    return torch.from_numpy(memory).view(dtype).view(shape)
