"""Tensors in memory of NumPy's: views of arrays, large pages, and memory that is used again."""

import ml_dtypes
import numpy as np
import pegasusx_numpy.workspace as numpy_workspace
import torch
from torch import Tensor


class WritableView:
    """A view of an array that NumPy and torch take for writable, without a copy.

    Weights that are mapped from a file are read-only, and torch warns of that, though nothing writes to them.
    `warnings.catch_warnings` would change the filters of all threads.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # keeps the memory alive
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def as_tensor(array: np.ndarray) -> Tensor:
    """View a floating-point array as a tensor; what torch cannot view, such as big-endian numbers, is copied."""
    dtype = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.dtype(np.float64)  # not float128
    if array.dtype != dtype or not array.flags.aligned or min(array.strides, default=0) < 0:
        array = array.astype(dtype, order="C")
    is_bfloat16 = array.dtype == ml_dtypes.bfloat16
    tensor = torch.from_numpy(np.asarray(WritableView(array.view(np.int16) if is_bfloat16 else array)))
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def in_large_pages(tensor: Tensor) -> Tensor:
    """Return a tensor that is contiguous: on a CPU in memory of NumPy's, which asks the system for large pages."""
    if tensor.device.type != "cpu" or tensor.is_contiguous():
        return tensor.contiguous()
    memory = torch.from_numpy(np.empty(tensor.numel() * tensor.itemsize, np.uint8))
    return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def take(shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """Return an uninitialized tensor in the workspace, as `out` of a function; None where the function allocates.

    Args:
        shape: of the tensor; small ones are None.
        like: a tensor of the same dtype and device; on others than a CPU there is no workspace.
    """
    on_cpu = like.device.type == "cpu"
    memory = numpy_workspace.take(torch.Size(shape).numel() * like.itemsize) if on_cpu else None
    return None if memory is None else torch.from_numpy(memory).view(like.dtype).view(shape)


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Allocate an uninitialized tensor, in the workspace if it is large; arguments as for `take`."""
    tensor = take(shape, like)
    return like.new_empty(shape) if tensor is None else tensor
