"""A candidate's tensors from a file, and the mapping of their names to trace points. [spec 16]"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile
from zlib import error as ZlibError

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.checkpoint.safetensors_file import INTEGERS, WEIGHTS, read_safetensors
from pegasusx_ref.errors import CheckpointError, InputError
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general

MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
INPUTS = tuple(name for pair in MASKS.items() for name in pair)
UNREADABLE = (ValueError, OSError, EOFError, BadZipFile, ZlibError)
STEPS: dict[str, Callable[[np.ndarray, list[int]], np.ndarray]] = {"reshape": np.reshape, "transpose": np.transpose}


class NpzFile(Mapping[str, np.ndarray]):
    """The tensors of an npz file, which is open only while one of them is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not is_zipfile(path):
            raise BadZipFile("not an npz file")
        with np.load(path, allow_pickle=False) as members:
            self._names = list(members)

    def __getitem__(self, name: str) -> np.ndarray:
        with np.load(self._path, allow_pickle=False) as members:
            tensor: np.ndarray = members[name]
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class MappedTensors(Mapping[str, np.ndarray]):
    """Tensors by trace-point name, each read on access.

    Args:
        tensors: by their own names.
        sources: the own name and the steps (reshape, transpose) for each trace-point name.
    """

    def __init__(self, tensors: Mapping[str, Any], sources: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        self._tensors, self._sources = tensors, sources

    def __getitem__(self, name: str) -> np.ndarray:
        theirs, steps = self._sources[name]
        try:
            tensor = to_numpy(self._tensors[theirs])
        except UNREADABLE as error:  # a member of an npz file is corrupt, or holds objects
            raise InputError(f"tensor {theirs!r} cannot be read: {error}") from None
        if tensor.dtype == np.dtype("V2"):
            raise InputError(f"tensor {theirs!r}: npz has no bfloat16; save float32, or a safetensors file")
        for step, numbers in steps.items():
            try:
                tensor = STEPS[step](tensor, numbers)
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{name}: {step} = {numbers} does not fit {theirs!r} of shape {tensor.shape}: {error}"
                ) from None
        return tensor

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
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; a dump is a .safetensors or .npz file")
    readers: dict[str, Callable[[Path], Mapping[str, Any]]] = {
        ".safetensors": partial(read_safetensors, dtypes=WEIGHTS | INTEGERS),
        ".npz": NpzFile,
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: a dump is a .safetensors or .npz file, not {path.suffix or 'without a suffix'}")
    try:
        tensors = readers[path.suffix](path)
    except (CheckpointError, *UNREADABLE) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return map_names(tensors, mapping)


def map_names(tensors: Mapping[str, Any], mapping: str | Path | Mapping[str, Any] | None) -> Mapping[str, np.ndarray]:
    """Map tensors to the names of the trace points.

    Args:
        tensors: by their own names.
        mapping: see `from_dump`; tensors that it does not name keep their names.

    Raises:
        InputError: a mapping that cannot be read, names a missing tensor, or maps two tensors to one name.
    """
    lines = mapping if isinstance(mapping, Mapping) else {} if mapping is None else read_mapping(Path(mapping))
    sources: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for ours, line in lines.items():
        theirs, steps = parse_line(ours, line)
        pattern = re.escape(theirs)
        for letter in "in":  # a repeated {i} or {n} must match the same number
            pattern = pattern.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>\d+)", 1)
            pattern = pattern.replace(rf"\{{{letter}\}}", f"(?P={letter})")
        matches = [match for name in tensors if (match := re.fullmatch(pattern, name))]
        if not matches:
            some = ", ".join(repr(name) for name in list(tensors)[:3]) or "none at all"
            raise InputError(f"mapping: {ours} = {theirs!r} matches no tensor of the candidate, which has {some}, …")
        for match in matches:
            name = ours.format(**{letter: int(number) for letter, number in match.groupdict().items()})
            if name in sources:
                raise InputError(
                    f"mapping: {name} has two sources, {sources[name][0]!r} and {match.string!r}: keep one"
                )
            sources[name] = (match.string, steps)
    mapped = {theirs for theirs, _ in sources.values()}
    sources |= {name: (name, {}) for name in tensors if name not in mapped and name not in sources}
    return MappedTensors(tensors, sources)


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Read a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a TOML file: {error}") from None


def parse_line(ours: str, line: Any) -> tuple[str, Mapping[str, Any]]:
    """Parse one line of a mapping into the candidate's name and the steps."""
    if general(ours) not in TRACE_POINTS and ours not in INPUTS:
        remedy = "; see pegasusx_ref.TRACE_POINTS"
        if isinstance(line, Mapping) and "name" not in line:
            remedy = ": put a name with dots in quotes"
        raise InputError(f"mapping: {ours!r} is not a trace point{remedy}")
    steps = {"name": line} if isinstance(line, str) else dict(line) if isinstance(line, Mapping) else {}
    theirs = steps.pop("name", None)
    if not isinstance(theirs, str) or set(steps) - set(STEPS):
        raise InputError(
            f"mapping: {ours} = {line!r}: expected a name, or {{name = …, reshape = […], transpose = […]}}"
        )
    if set(re.findall(r"\{[in]\}", ours)) != set(re.findall(r"\{[in]\}", theirs)):
        raise InputError(f"mapping: {ours} = {theirs!r}: {{i}} and {{n}} must be on both sides")
    return theirs, steps
