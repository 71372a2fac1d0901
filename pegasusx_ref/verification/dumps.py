"""A candidate's tensors from a file, and the mapping of their names to trace points. [spec 16]"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from weakref import finalize
from zipfile import ZIP_DEFLATED, ZIP_STORED

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.checkpoint.safetensors_file import INTEGERS, WEIGHTS, read_safetensors
from pegasusx_ref.errors import CheckpointError, InputError, reason, shown
from pegasusx_ref.files.reading import as_path, read_bytes, reading
from pegasusx_ref.files.zip_files import open_zip
from pegasusx_ref.model.inputs import MAX_TOKENS
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general

MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
INPUTS = tuple(name for pair in MASKS.items() for name in pair)
MAX_MAPPING_SIZE = 2**20  # bytes
COMPRESSIONS = (ZIP_STORED, ZIP_DEFLATED)  # those of NumPy
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
STEPS: dict[str, Callable[[np.ndarray, list[int]], np.ndarray]] = {"reshape": np.reshape, "transpose": np.transpose}


class NpzFile(Mapping[str, np.ndarray]):
    """The tensors of an npz file, which stays open as long as this object lives.

    Shapes and dtypes are known before a tensor is read, and nothing is read that the file has no room for.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as stack:
            self._archive = stack.enter_context(open_zip(path, COMPRESSIONS))
            self._members = {name.removesuffix(".npy"): name for name in self._archive.namelist()}
            finalize(self, stack.pop_all().close)

    def empty(self, name: str) -> np.ndarray:
        """Return an array of a tensor's shape and dtype, all of whose elements are one and the same zero."""
        member = self._archive.getinfo(self._members[name])
        with self._reading(name), self._archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in NPY_HEADERS:
                raise ValueError(f"its npy version is {version}")
            shape, _, dtype = NPY_HEADERS[version](file)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                raise ValueError(f"its dtype {dtype} and shape {shape} do not fit its size")
            return np.broadcast_to(np.zeros((), dtype), shape)

    def __getitem__(self, name: str) -> np.ndarray:
        self.empty(name)  # checks the size that is about to be allocated
        with self._reading(name), self._archive.open(self._members[name]) as file:
            tensor: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            return tensor

    def _reading(self, name: str) -> AbstractContextManager[None]:
        return reading(f"{self._path}: tensor {shown(name)}", "readable", InputError)

    def __contains__(self, name: object) -> bool:
        return name in self._members  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


class MappedTensors(Mapping[str, np.ndarray]):
    """Tensors by trace-point name, each read on access.

    Args:
        tensors: by their own names.
        sources: the own name and the steps (reshape, transpose) for each trace-point name.
    """

    def __init__(self, tensors: Mapping[str, Any], sources: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        self._tensors, self._sources = tensors, sources

    def __getitem__(self, name: str) -> np.ndarray:
        if name in INPUTS and math.prod(self.shape(name)) > MAX_TOKENS:
            raise InputError(f"{name} has shape {self.shape(name)}: at most {MAX_TOKENS:,} ids or masks are read")
        theirs, _ = self._sources[name]
        with reading(f"tensor {shown(theirs)}", "readable", InputError):
            tensor = to_numpy(self._tensors[theirs])
        if tensor.dtype == np.dtype("V2"):
            raise InputError(f"tensor {shown(theirs)}: npz has no bfloat16; save float32, or a safetensors file")
        return self._rearranged(name, tensor)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it, where its file can tell."""
        theirs, _ = self._sources[name]
        with reading(f"tensor {shown(theirs)}", "readable", InputError):
            tensor = self._tensors.empty(theirs) if isinstance(self._tensors, NpzFile) else self._tensors[theirs]
        return self._rearranged(name, tensor).shape

    def _rearranged(self, name: str, tensor: Any) -> np.ndarray:
        theirs, steps = self._sources[name]
        for step, numbers in steps.items():
            try:
                tensor = STEPS[step](tensor, numbers)
            except (ValueError, TypeError, OverflowError) as error:
                raise InputError(
                    f"{name}: {step} = {shown(numbers)} does not fit {shown(theirs)} of shape {tuple(tensor.shape)}: "
                    f"{reason(error)}"
                ) from None
        return tensor  # type: ignore[no-any-return]

    def __contains__(self, name: object) -> bool:
        return name in self._sources  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def from_dump(path: str | Path, mapping: str | Path | Mapping[str, Any] | None = None) -> Mapping[str, np.ndarray]:
    """Read a candidate's tensors from a file. [spec 16.16]

    Args:
        path: a .safetensors or .npz file. Tensors may be missing; the file may also hold input_ids and other inputs.
        mapping: a TOML file, or its content: ours = theirs, or ours = {name = theirs, reshape = […], transpose = […]},
            with the steps in the order in which they are written; {i} and {n} stand for any layer and block. None where
            the names are those of the trace points.

    Returns:
        The tensors by trace-point name, each read on access.

    Raises:
        InputError: a missing file, another format, or a mapping that does not fit the file.
    """
    path = as_path(path)
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; a dump is a .safetensors or .npz file")
    if path.suffix == ".npz":
        with reading(path, "an npz file", InputError):
            npz = NpzFile(path)
        return map_names(npz, mapping)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a dump is a .safetensors or .npz file, not {path.suffix or 'without a suffix'}")
    try:
        tensors, _ = read_safetensors(path, WEIGHTS | INTEGERS)
    except CheckpointError as error:
        raise InputError(str(error)) from None
    return map_names(tensors, mapping)


def map_names(tensors: Mapping[str, Any], mapping: str | Path | Mapping[str, Any] | None) -> Mapping[str, np.ndarray]:
    """Map tensors to the names of the trace points.

    Args:
        tensors: by their own names.
        mapping: see `from_dump`; tensors that it does not name keep their names.

    Raises:
        InputError: a mapping that cannot be read, names a missing tensor, or maps two tensors to one name.
    """
    if not isinstance(mapping, Mapping | None):
        path = as_path(mapping)
        with reading(path, "a TOML file", InputError):
            import tomllib

            return map_names(tensors, tomllib.loads(read_bytes(path, MAX_MAPPING_SIZE).decode()))
    lines = mapping or {}
    sources: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for ours, line in lines.items():
        theirs, steps = parse_line(ours, line)
        pattern = re.escape(theirs)
        for letter in "in":  # a repeated {i} or {n} must match the same number
            pattern = pattern.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>\d+)", 1)
            pattern = pattern.replace(rf"\{{{letter}\}}", f"(?P={letter})")
        matches = [match for name in tensors if (match := re.fullmatch(pattern, name))]
        if not matches:
            some = ", ".join(shown(name) for name in list(tensors)[:3]) or "none at all"
            raise InputError(
                f"mapping: {ours} = {shown(theirs)} matches no tensor of the candidate, which has {some}, …"
            )
        for match in matches:
            name = ours.format(**{letter: int(number) for letter, number in match.groupdict().items()})
            if name in sources:
                raise InputError(
                    f"mapping: {name} has two sources, {shown(sources[name][0])} and {shown(match.string)}: keep one"
                )
            sources[name] = (match.string, steps)
    mapped = {theirs for theirs, _ in sources.values()}
    sources |= {name: (name, {}) for name in tensors if name not in mapped and name not in sources}
    return MappedTensors(tensors, sources)


def parse_line(ours: str, line: Any) -> tuple[str, Mapping[str, Any]]:
    """Parse one line of a mapping into the candidate's name and the steps."""
    if general(ours) not in TRACE_POINTS and ours not in INPUTS:
        remedy = "; see pegasusx_ref.TRACE_POINTS"
        if isinstance(line, Mapping) and "name" not in line:
            remedy = ": put a name with dots in quotes"
        raise InputError(f"mapping: {shown(ours)} is not a trace point{remedy}")
    steps = {"name": line} if isinstance(line, str) else dict(line) if isinstance(line, Mapping) else {}
    theirs = steps.pop("name", None)
    if not isinstance(theirs, str) or set(steps) - set(STEPS):
        raise InputError(
            f"mapping: {ours} = {shown(line)}: expected a name, or {{name = …, reshape = […], transpose = […]}}"
        )
    if set(re.findall(r"\{[in]\}", ours)) != set(re.findall(r"\{[in]\}", theirs)):
        raise InputError(f"mapping: {ours} = {shown(theirs)}: {{i}} and {{n}} must be on both sides")
    return theirs, steps
