"""Reading a safetensors file without copying it, bfloat16 included."""

import os
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.foreign import AGAIN
from pegasusx_ref.files.json_files import parse_object
from pegasusx_ref.files.reading import open_regular, reading

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
QUANTIZED = WEIGHTS | {name: INTEGERS[name] for name in ("I8", "U8")}

MAX_HEADER_SIZE = 2**22  # bytes: 25,000 tensors with names of 60 characters


def read_safetensors(
    path: Path, dtypes: Mapping[str, np.dtype] = WEIGHTS
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Map a safetensors file into memory.

    The safetensors library validates the file (header, offsets, length); the tensors are then views of a memory map, so
    a tensor is read when it is used, and no copy is held. (The library's own NumPy reader copies every tensor and has
    no bfloat16.)

    Args:
        path: the file.
        dtypes: the expected dtypes, by the format's names.

    Returns:
        Read-only arrays by name, and the file's metadata.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt, or a tensor is of another dtype.

    Source: https://huggingface.co/docs/safetensors, "Format".
    """
    with reading(path, "a complete safetensors file", CheckpointError):
        with open_regular(path) as file:
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > MAX_HEADER_SIZE:
                raise ValueError(f"a header of {header_size:,} bytes, at most {MAX_HEADER_SIZE:,} are read")
            text = file.read(header_size)
            if len(text) < header_size:
                raise ValueError(f"its end is missing: {AGAIN}")
            header = parse_object(text)
            size = os.fstat(file.fileno()).st_size
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError:
            stops = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            if size < (expected := 8 + header_size + max(stops, default=0)):
                raise ValueError(f"it has {size:,} of {expected:,} bytes: {AGAIN}") from None
            raise
        buffer = np.memmap(path, dtype=np.uint8, mode="r")
        metadata = header.pop("__metadata__", None) or {}
        tensors = {}
        for name, entry in header.items():
            if entry["dtype"] not in dtypes:
                raise CheckpointError(
                    f"{path}: tensor {shown(name)} has dtype {entry['dtype']}: expected one of {', '.join(dtypes)}"
                )
            start, stop = (8 + header_size + offset for offset in entry["data_offsets"])
            # A plain ndarray: np.memmap would pass its subclass on to every result.
            raw = np.asarray(buffer[start:stop])
            tensors[name] = raw.view(dtypes[entry["dtype"]]).reshape(entry["shape"])
        return tensors, metadata
