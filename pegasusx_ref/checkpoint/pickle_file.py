"""Reading pytorch_model.bin, which requires torch."""

import pickle
import zipfile
from pathlib import Path

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import CheckpointError

DTYPES = ("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a file written by torch.save, without running any code in it.

    Args:
        path: the file.

    Returns:
        float64, float32, float16 and bfloat16 arrays by name, memory-mapped if the file's format allows it.

    Raises:
        CheckpointError: torch is not installed, the file is missing or corrupt, or holds something else.
    """
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path}: reading it requires torch: pip install torch, or use a checkpoint with safetensors files"
        ) from None

    if not path.exists():
        raise CheckpointError(f"{path}: missing, although the index names it")
    try:
        # Only the newer of torch's two formats, a zip archive, can be mapped into memory.
        entries = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:  # torch's own message suggests running the file's code, which is unsafe
        reason = "damaged, or holding more than tensors; none of its code was run"
        raise CheckpointError(f"{path}: not a complete file of torch.save ({reason})") from None
    except Exception as error:  # torch raises many kinds of errors here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a complete file of torch.save ({reason})") from None

    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: holds a {type(entries).__name__}, not a dictionary of tensors by name")
    tensors = {}
    for name, tensor in entries.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: entry {name!r} is a {type(tensor).__name__}, not a tensor with a name")
        if str(tensor.dtype) not in DTYPES or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.layout}, {tensor.dtype}: "
                f"expected a dense one of {', '.join(DTYPES)}"
            )
        tensors[name] = to_numpy(tensor)
    return tensors
