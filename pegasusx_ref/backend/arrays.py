"""Conversions to NumPy: bfloat16 dtypes and torch tensors."""

from typing import Any

import ml_dtypes
import numpy as np


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name; bfloat16 is the one of ml_dtypes.

    Args:
        name: "float64", "float32", "bfloat16" or "float16".
    """
    return np.dtype(getattr(ml_dtypes, name, name))


def to_numpy(values: Any) -> np.ndarray:
    """Convert a torch tensor of any device and dtype, an array, nested lists or a number to an array.

    Args:
        values: a torch tensor (also in bfloat16, also with gradients), or what `numpy.asarray` accepts.

    Returns:
        An array; bfloat16 is the one of ml_dtypes. CPU tensors and arrays are not copied.

    Raises:
        TypeError: a torch tensor whose dtype or layout NumPy does not have.
        ValueError: nested lists of different lengths.
    """
    if not hasattr(values, "detach"):
        return np.asarray(values)
    import torch  # only here: torch is optional, and whoever has a tensor has it

    tensor = values.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.contiguous().view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
