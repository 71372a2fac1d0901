"""Reading pytorch_model.bin, which requires torch."""

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.reading import open_regular, reading
from pegasusx_ref.files.zip_files import LimitedReads, open_zip

DTYPES = ("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")
QUANTIZED = (*DTYPES, "torch.int8", "torch.uint8")
MAX_OPERATIONS = 2**18  # 7,000 tensors, seven times those of the large model
MAX_PICKLE_SIZE = 2**24  # bytes
MAX_TUPLE = 2**10  # a tensor's shape and strides have at most 128 numbers
# The entries of a training program's file under which it keeps the state dict, as Lightning and DeepSpeed do.
STATE_DICTS = ("state_dict", "model_state_dict", "module", "model")
OLDER_PICKLES = 5  # in a file of torch's older format, in front of the tensors' data
# The functions and classes from which torch.save builds tensors and dictionaries of them.
TENSOR_GLOBALS = re.compile(
    r"collections OrderedDict|torch._utils _rebuild_(tensor|tensor_v2|tensor_v3|sparse_tensor|parameter\w*)|"
    r"torch(.storage)? \w*Storage|torch (Size|device|\w*(float|int|bool|complex)\w*)|torch.serialization _get_layout"
)


def read_pickle(path: Path, dtypes: Sequence[str] = DTYPES) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the tensors of a file written by torch.save, without running any code in it.

    Args:
        path: the file.
        dtypes: the expected dtypes.

    Returns:
        Arrays by name, memory-mapped if the file's format allows it; and no
        metadata, as the format has none.

    Raises:
        CheckpointError: torch is not installed, the file is missing or corrupt, or holds something else.
    """
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path}: reading it requires torch: pip install torch, or use a checkpoint with safetensors files"
        ) from None

    with reading(path, "a complete file of torch.save", CheckpointError):
        with open_regular(path) as file:
            is_zip = zipfile.is_zipfile(file)
        _check_pickles(path, is_zip)
        # Only the newer of torch's two formats, a zip archive, can be mapped into memory.
        options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
        if path.suffix == ".safetensors":  # torch would take the path for a file of that format
            with open_regular(path) as file:
                entries = torch.load(file, **options)
        else:
            entries = torch.load(path, mmap=is_zip, **options)
        entries = _state_dict(path, entries)
        if not isinstance(entries, dict):
            raise ValueError(f"a {type(entries).__name__}: expected a dictionary of tensors by name")
        arrays = {name: _array(name, tensor, dtypes) for name, tensor in entries.items()}
        if is_zip:
            _check_storages(path, entries)
        return arrays, {}


def _state_dict(path: Path, entries: Any) -> Any:
    """Find the state dict among the entries of a training program's file."""
    name = next((n for n in STATE_DICTS if isinstance(entries, dict) and isinstance(entries.get(n), dict)), None)
    if name is None:
        return entries
    warnings.warn(f"{path}: read its entry {name!r}, the state dict of a training program's file", stacklevel=7)
    return entries[name]


def _operations(path: Path, is_zip: bool) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    """List the operations of every pickle in a file."""
    if not is_zip:
        with open_regular(path) as raw, LimitedReads(raw) as file:
            for _ in range(OLDER_PICKLES):
                yield from pickletools.genops(file)
        return
    with open_zip(path, (zipfile.ZIP_STORED,)) as archive:
        for member in archive.infolist():
            if member.filename.endswith("data.pkl"):
                if member.file_size > MAX_PICKLE_SIZE:
                    raise ValueError(f"{member.filename} has {member.file_size:,} bytes, more than {MAX_PICKLE_SIZE:,}")
                with archive.open(member) as file:
                    yield from pickletools.genops(file)


def _check_pickles(path: Path, is_zip: bool) -> None:
    """Refuse what torch.load would run or hash without an end.

    It would call more than the functions that build tensors. And a tuple as a key is hashed recursively: a few bytes
    describe one that holds another twice, which holds another twice, or one that is nested beyond the stack.
    """
    stack: list[int] = []  # the size of every object: of a tuple with its parts, doubled at every level
    marks: list[int] = []
    memo: dict[int, int] = {}
    for count, (opcode, argument, _) in enumerate(_operations(path, is_zip)):
        if count == MAX_OPERATIONS:
            raise ValueError(f"more than {MAX_OPERATIONS:,} operations")
        found = opcode.name if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4") else argument
        if (opcode.name == "GLOBAL" or found is opcode.name) and not TENSOR_GLOBALS.fullmatch(str(found)):
            raise ValueError(f"it holds more than tensors ({shown(found)}); none of its code was run")
        taken = opcode.stack_before
        has_mark = pickletools.markobject in taken
        start = marks.pop() - taken.index(pickletools.markobject) if has_mark else len(stack) - len(taken)
        parts, stack[start:] = stack[start:], []
        size = 1 + 2 * sum(parts) if "TUPLE" in opcode.name else 1
        if size > MAX_TUPLE:
            raise ValueError("a tuple of too many parts")
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif "PUT" in opcode.name:
            memo[argument] = stack[-1]
        elif opcode.stack_after:
            stack.append(memo[argument] if "GET" in opcode.name else size)


def _check_storages(path: Path, tensors: Mapping[str, Any]) -> None:
    """Refuse tensors that reach into the data of others: torch.load does not check this where it maps a file."""
    storages = (tensor.untyped_storage() for tensor in tensors.values())
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    with open_zip(path, (zipfile.ZIP_STORED,)) as archive:
        stored = sum(member.file_size for member in archive.infolist() if "/data/" in member.filename)
    if sum(sizes.values()) > stored:
        raise ValueError(f"tensors of {sum(sizes.values()):,} bytes, but {stored:,} are stored")


def _array(name: Any, tensor: Any, dtypes: Sequence[str]) -> np.ndarray:
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise ValueError(f"entry {shown(name)} is a {type(tensor).__name__}, not a tensor with a name")
    if str(tensor.dtype) not in dtypes or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError(
            f"tensor {shown(name)} is {tensor.layout}, {tensor.dtype}, on {tensor.device}: "
            f"expected a dense one of {', '.join(dtypes)}"
        )
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise ValueError(f"tensor {shown(name)} of shape {tuple(tensor.shape)} is larger than its data")
    return to_numpy(tensor)
