"""What NumPy lacks of torch: bfloat16, and taking its tensors."""

from typing import Any

import ml_dtypes
import numpy as np


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Find a dtype by name; bfloat16 is that of ml_dtypes.

    Args:
        name: "float64", "float32", "bfloat16" or "float16".
    """
    return np.dtype(getattr(ml_dtypes, name, name))


def to_numpy(values: Any) -> np.ndarray:
    """Turn what a user has into an array: a torch tensor of any device and dtype, an array, nested lists, a number.

    Args:
        values: a torch tensor (bfloat16 and gradients included), or whatever `numpy.asarray` takes.

    Returns:
        An array; bfloat16 is that of ml_dtypes. CPU tensors and arrays are not copied.

    Raises:
        TypeError: a torch tensor of a dtype or layout that NumPy does not have.
        ValueError: nested lists of different lengths.
    """
    if not hasattr(values, "detach"):
        return np.asarray(values)
    import torch  # only here: whoever has a tensor has torch

    tensor = values.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.contiguous().view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
