"""Reading a safetensors file without copying it, bfloat16 included."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from pegasusx_ref.errors import CheckpointError

WEIGHTS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
INTEGERS: dict[str, np.dtype] = {
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def read_safetensors(path: Path, dtypes: Mapping[str, np.dtype] = WEIGHTS) -> dict[str, np.ndarray]:
    """Map a safetensors file into memory.

    The safetensors library validates the file (header, offsets, length); the tensors are then views of a memory map, so
    a tensor is read when it is used, and no copy is held. (The library's own NumPy reader copies every tensor and has
    no bfloat16.)

    Args:
        path: the file.
        dtypes: the expected dtypes, by the format's names.

    Returns:
        Read-only arrays by name.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt, or a tensor is of another dtype.

    Source: https://huggingface.co/docs/safetensors, "Format".
    """
    if not path.exists():
        raise CheckpointError(f"{path}: missing, although the index names it")
    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_size))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file ({error})") from None

    buffer = np.memmap(path, dtype=np.uint8, mode="r", offset=0)
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in dtypes:
            raise CheckpointError(
                f"{path}: tensor {name!r} has dtype {entry['dtype']}: expected one of {', '.join(dtypes)}"
            )
        start, stop = (8 + header_size + offset for offset in entry["data_offsets"])
        # A plain ndarray: np.memmap would pass its subclass on to every result.
        raw = np.asarray(buffer[start:stop])
        tensors[name] = raw.view(dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors
