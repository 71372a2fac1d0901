"""Reading pytorch_model.bin, which takes torch."""

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from pegasusx_ref.errors import CheckpointError


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read the tensors of a file that torch.save wrote; no code in it is run.

    Args:
        path: the file.

    Returns:
        float64, float32, float16 and bfloat16 arrays by name, memory-mapped where the file's format allows it.

    Raises:
        CheckpointError: torch is not installed, the file is missing or corrupt, or holds something else.
    """
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path}: reading it takes torch: pip install 'pegasusx-ref[torch]', or convert the folder to safetensors"
        ) from None

    if not path.exists():
        raise CheckpointError(f"{path}: missing, although the index names it")
    try:
        # Only the newer of torch's two formats, a zip archive, can be mapped into memory.
        entries = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises whatever the unpickler meets
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a complete file of torch.save ({reason})") from None

    tensors = {}
    for name, tensor in dict(entries).items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise CheckpointError(f"{path}: entry {name!r} is no floating-point tensor")
        if tensor.dtype == torch.bfloat16:
            tensors[name] = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            tensors[name] = tensor.numpy()
    return tensors
