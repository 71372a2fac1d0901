"""A safetensors file that is written tensor by tensor: together they may be larger than the memory."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pegasusx_ref.checkpoint.safetensors_file import INTEGERS, WEIGHTS
from pegasusx_ref.files.writing import replacing

FORMAT_NAMES = {dtype.name: name for name, dtype in (WEIGHTS | INTEGERS).items()}


class FileLayout(NamedTuple):
    """Where each tensor of a safetensors file lies.

    Attributes:
        header: the bytes before the first tensor.
        tensors: shape and dtype of each tensor.
        offsets: the position of each tensor in the file, in bytes.
        size: of the whole file, in bytes.
    """

    header: bytes
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    offsets: dict[str, int]
    size: int


def file_layout(
    tensors: Mapping[str, tuple[tuple[int, ...], str]], metadata: Mapping[str, str] | None = None
) -> FileLayout:
    """Compute the layout of a safetensors file.

    Args:
        tensors: shape and dtype by name, in the order of the file; the largest dtypes first keep all of them aligned.
        metadata: of the file.

    Source: https://huggingface.co/docs/safetensors, "Format".
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    starts, end = {}, 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + prod(shape) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": FORMAT_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        starts[name] = start
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + start for name, start in starts.items()}
    return FileLayout(header, tensors, offsets, len(header) + end)


class TensorWriter:
    """A listener that writes every tensor to its place in an open file."""

    def __init__(self, file: IO[bytes], layout: FileLayout) -> None:
        self._file, self._layout, self._missing = file, layout, set(layout.offsets)

    def __call__(self, name: str, tensor: Any) -> None:
        """Write a tensor; see `listen`."""
        array = np.asarray(tensor, order="C")
        found = array.shape, array.dtype.name
        assert found == self._layout.tensors[name], f"{name} has shape and dtype {found}"
        self._file.seek(self._layout.offsets[name])
        self._file.write(array.reshape(-1).view(np.uint8).data)
        self._missing.discard(name)

    def check(self) -> None:
        """Check that every tensor is written."""
        assert not self._missing, f"never written: {', '.join(sorted(self._missing))}"


@contextmanager
def safetensors_writer(path: Path, layout: FileLayout) -> Iterator[TensorWriter]:
    """Write a safetensors file while the block runs; `path` is replaced when the new file is complete.

    Args:
        path: the file.
        layout: of its tensors.

    Returns:
        A context manager that returns the listener.
    """
    with replacing(path) as temporary, open_writer(temporary, layout) as writer:
        yield writer


@contextmanager
def open_writer(path: Path, layout: FileLayout) -> Iterator[TensorWriter]:
    """Write a safetensors file in place; arguments and result as for `safetensors_writer`."""
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
        writer = TensorWriter(file, layout)
        yield writer
        writer.check()
