"""All tensors of a run in a file, each written as it is made: the file may be larger than the memory."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pegasusx_ref.checkpoint.files import replacing
from pegasusx_ref.checkpoint.safetensors_file import INTEGERS, WEIGHTS

FORMAT_NAMES = {dtype.name: name for name, dtype in (WEIGHTS | INTEGERS).items()}


class Layout(NamedTuple):
    """What is to be where in a safetensors file.

    Attributes:
        header: the file's beginning, up to the first tensor.
        starts: where each tensor begins in the file.
        shapes: of each tensor.
        dtypes: of each tensor.
        size: of the whole file, in bytes.
    """

    header: bytes
    starts: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    size: int


def layout_of(tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> Layout:
    """Lay out a safetensors file.

    Args:
        tensors: shape and dtype by name.

    Source: https://huggingface.co/docs/safetensors, "Format".
    """
    entries, starts, end = {}, {}, 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": FORMAT_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        starts[name] = start
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    header = len(text).to_bytes(8, "little") + text
    return Layout(
        header,
        {name: len(header) + start for name, start in starts.items()},
        {name: shape for name, (shape, _) in tensors.items()},
        {name: np.dtype(dtype) for name, (_, dtype) in tensors.items()},
        len(header) + end,
    )


class TensorFile:
    """A listener that writes every tensor to its place in an open file."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        self._file, self._layout, self._missing = file, layout, set(layout.starts)

    def __call__(self, name: str, tensor: Any) -> None:
        """Write a tensor; see `listen`."""
        array = np.ascontiguousarray(tensor)
        assert array.shape == self._layout.shapes[name], f"{name} has shape {array.shape}"
        assert array.dtype == self._layout.dtypes[name], f"{name} has dtype {array.dtype}"
        self._file.seek(self._layout.starts[name])
        self._file.write(array.data)
        self._missing.discard(name)

    def check(self) -> None:
        """Make sure that nothing is left out."""
        assert not self._missing, f"never written: {', '.join(sorted(self._missing))}"


@contextmanager
def saving(path: Path, layout: Layout) -> Iterator[TensorFile]:
    """Write a safetensors file while the block runs; `path` is either the old file or the whole new one.

    Args:
        path: the file.
        layout: what is to be in it.

    Returns:
        A context manager that gives the listener.
    """
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
        tensors = TensorFile(file, layout)
        yield tensors
        tensors.check()
