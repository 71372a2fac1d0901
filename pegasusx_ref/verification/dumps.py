"""A candidate's tensors on disk, and under names of its own. [spec 16]"""

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

INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
UNREADABLE = (ValueError, OSError, EOFError, BadZipFile, ZlibError)
STEPS: dict[str, Callable[[np.ndarray, list[int]], np.ndarray]] = {"reshape": np.reshape, "transpose": np.transpose}


class Archive(Mapping[str, np.ndarray]):
    """The tensors of an npz file, which is open only while one is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not is_zipfile(path):
            raise BadZipFile("it is no npz file")
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


class Renamed(Mapping[str, np.ndarray]):
    """Tensors under the names of trace points, each read when it is asked for.

    Args:
        tensors: under names of their own.
        sources: for a name here, the name there and what is done to the tensor.
    """

    def __init__(self, tensors: Mapping[str, Any], sources: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        self._tensors, self._sources = tensors, sources

    def __getitem__(self, name: str) -> np.ndarray:
        theirs, steps = self._sources[name]
        try:
            tensor = to_numpy(self._tensors[theirs])
        except UNREADABLE as error:  # a member of an archive is corrupt, or holds objects
            raise InputError(f"tensor {theirs!r} cannot be read: {error}") from None
        if tensor.dtype == np.dtype("V2"):
            raise InputError(f"tensor {theirs!r}: an npz file knows no bfloat16; save float32, or a safetensors file")
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
    """Take a candidate's tensors from a file. [spec 16.16]

    Args:
        path: a .safetensors or .npz file. Tensors may be missing; input_ids and the like may lie beside them.
        mapping: a TOML file, or what is in one: ours = theirs, or ours = {name = theirs, reshape = […], transpose =
            […]}, the steps in the order in which they are written; {i} and {n} stand for any layer and block. None
            where the names are those of the trace points.

    Returns:
        The tensors by trace-point name, each read when it is asked for.

    Raises:
        InputError: no such file, none of these formats, or a mapping that does not fit the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; a dump is a .safetensors or .npz file")
    readers: dict[str, Callable[[Path], Mapping[str, Any]]] = {
        ".safetensors": partial(read_safetensors, dtypes=WEIGHTS | INTEGERS),
        ".npz": Archive,
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: a dump is a .safetensors or .npz file, not {path.suffix or 'without a suffix'}")
    try:
        tensors = readers[path.suffix](path)
    except (CheckpointError, *UNREADABLE) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return renamed(tensors, mapping)


def renamed(tensors: Mapping[str, Any], mapping: str | Path | Mapping[str, Any] | None) -> Mapping[str, np.ndarray]:
    """Give tensors the names of the trace points.

    Args:
        tensors: under names of their own.
        mapping: see `from_dump`; tensors that it does not name keep their names.

    Raises:
        InputError: a mapping that cannot be read, names what is not there, or names a tensor twice.
    """
    lines = mapping if isinstance(mapping, Mapping) else {} if mapping is None else read_mapping(Path(mapping))
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for ours, line in lines.items():
        theirs, steps = checked(ours, line)
        pattern = re.escape(theirs)
        for letter in "in":  # the number of a layer, of a block: the same wherever it stands
            pattern = pattern.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>\d+)", 1)
            pattern = pattern.replace(rf"\{{{letter}\}}", f"(?P={letter})")
        matches = [match for name in tensors if (match := re.fullmatch(pattern, name))]
        if not matches:
            some = ", ".join(repr(name) for name in list(tensors)[:3]) or "none at all"
            raise InputError(f"mapping: {ours} = {theirs!r} fits no tensor of the candidate, which has {some}, …")
        for match in matches:
            name = ours.format(**{letter: int(number) for letter, number in match.groupdict().items()})
            if name in found:
                raise InputError(f"mapping: {name} is {found[name][0]!r} and {match.string!r}: a tensor has one source")
            found[name] = (match.string, steps)
    taken = {theirs for theirs, _ in found.values()}
    return Renamed(tensors, found | {name: (name, {}) for name in tensors if name not in taken and name not in found})


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Read a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a TOML file: {error}") from None


def checked(ours: str, line: Any) -> tuple[str, Mapping[str, Any]]:
    """Check one line of a mapping: their name, and what is done to the tensor."""
    if general(ours) not in TRACE_POINTS and ours not in INPUTS:
        remedy = "; see pegasusx_ref.TRACE_POINTS"
        if isinstance(line, Mapping) and "name" not in line:
            remedy = ": a name with dots has to stand in quotes"
        raise InputError(f"mapping: {ours!r} is no trace point{remedy}")
    steps = {"name": line} if isinstance(line, str) else dict(line) if isinstance(line, Mapping) else {}
    theirs = steps.pop("name", None)
    if not isinstance(theirs, str) or set(steps) - set(STEPS):
        raise InputError(
            f"mapping: {ours} = {line!r}: expected a name, or {{name = …, reshape = […], transpose = […]}}"
        )
    if set(re.findall(r"\{[in]\}", ours)) != set(re.findall(r"\{[in]\}", theirs)):
        raise InputError(f"mapping: {ours} = {theirs!r}: {{i}} and {{n}} have to stand on both sides")
    return theirs, steps
