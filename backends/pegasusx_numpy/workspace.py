"""Large arrays in memory that is used again.

The C library returns large memory to the system as soon as it is freed, and the system clears each page that it gives.
In an encoder that takes a tenth of the time. Inside `workspace` such memory is kept until the block ends.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from threading import Lock
from typing import Any

import numpy as np

MIN_BYTES = 2**20  # of an array: the C library keeps smaller ones
ALIGNMENT = 64  # bytes: a line of the cache


def references(buffers: list[np.ndarray], i: int) -> int:
    """Count the references to a buffer, that of the list included."""
    return sys.getrefcount(buffers[i])


REFERENCES_TO_FREE = references([np.empty(1)], 0)  # Python's versions count their own differently


class Buffers:
    """The memory of large arrays. A buffer is free when no array refers to it any more."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[np.ndarray]] = {}
        self._lock = Lock()  # threads of a pool share the buffers of their caller

    def take(self, size: int) -> np.ndarray:
        """Return `size` bytes that nothing else refers to."""
        with self._lock:
            buffers = self._by_size.setdefault(size, [])
            free = next((i for i in range(len(buffers)) if references(buffers, i) == REFERENCES_TO_FREE), None)
            if free is None:
                free = len(buffers)
                buffers.append(np.empty(size + ALIGNMENT, np.uint8))
            start = -buffers[free].ctypes.data % ALIGNMENT
            return buffers[free][start : start + size]


_current: ContextVar[Buffers | None] = ContextVar("buffers", default=None)


@contextmanager
def workspace() -> Iterator[None]:
    """Use the memory of large arrays again inside the block."""
    token = _current.set(_current.get() or Buffers())
    try:
        yield
    finally:
        _current.reset(token)


def take(size: int) -> np.ndarray | None:
    """Return uninitialized bytes of the workspace; None for few bytes and outside a workspace."""
    buffers = _current.get() if size >= MIN_BYTES else None
    return None if buffers is None else buffers.take(size)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Allocate an uninitialized array, in the workspace if it is large."""
    memory = take(prod(shape) * np.dtype(dtype).itemsize)
    return np.empty(shape, dtype) if memory is None else memory.view(dtype).reshape(shape)
