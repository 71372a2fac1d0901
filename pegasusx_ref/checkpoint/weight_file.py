"""One file of weights, in the format of its content."""

import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from pegasusx_ref.files.reading import open_regular

SAFETENSORS_SUFFIX = ".safetensors"


def read_weight_file(path: Path, quantized: bool = False) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """Read the tensors of a file, in the format of its content; with a warning if its name says another one.

    Args:
        path: the file.
        quantized: whether it may hold codes of quantized matrices, int8 and uint8.

    Returns:
        Tensors by name, memory-mapped where the format allows it, and the file's metadata.

    Raises:
        CheckpointError: it is missing or corrupt; see `read_safetensors` and `read_pickle`.
    """
    from pegasusx_ref.checkpoint import pickle_file, safetensors_file

    named = path.name.endswith(SAFETENSORS_SUFFIX)
    found = _is_safetensors(path)
    if found is not None and found != named:
        kind = "safetensors" if found else "pickle"
        warnings.warn(f"{path}: a {kind} file under another name: read as what it is", stacklevel=5)
        named = found
    if named:
        expected = safetensors_file.QUANTIZED if quantized else safetensors_file.WEIGHTS
        return safetensors_file.read_safetensors(path, expected)
    return pickle_file.read_pickle(path, pickle_file.QUANTIZED if quantized else pickle_file.DTYPES)


def _is_safetensors(path: Path) -> bool | None:
    """Tell the two formats apart by the first bytes; None where they are neither's."""
    with suppress(OSError), open_regular(path) as file:
        head = file.read(9)
        if not head:  # None from a file of the kernel that waits for data
            return None
        if head[5:] == b"\0\0\0{":  # after a header size of less than 2**40 bytes
            return True
        if head.startswith(b"\x80\x02") or zipfile.is_zipfile(file):
            return False
    return None
