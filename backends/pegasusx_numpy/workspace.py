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
MAX_HELD = 1.15  # times what was in use at once: with 1 a large buffer is dropped and allocated again in each layer


def references(buffers: list[np.ndarray], i: int) -> int:
    """Count the references to a buffer, that of the list included."""
    return sys.getrefcount(buffers[i])


REFERENCES_TO_FREE = references([np.empty(1)], 0)  # Python's versions count their own differently


class Buffers:
    """The memory of large arrays. A buffer is free when no array refers to it any more.

    Free buffers are kept as long as all buffers together take hardly more memory than those that were in use at once.
    """

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._most = 0  # bytes in use at once so far
        self._lock = Lock()  # threads of a pool share the buffers of their caller

    def take(self, size: int) -> np.ndarray:
        """Return `size` bytes that nothing else refers to."""
        with self._lock:
            buffers, length = self._buffers, size + ALIGNMENT
            free = [i for i in range(len(buffers)) if references(buffers, i) == REFERENCES_TO_FREE]
            held = sum(map(len, buffers))
            self._most = max(self._most, held - sum(len(buffers[i]) for i in free) + length)
            place = next((i for i in free if len(buffers[i]) == length), None)
            if place is None:
                for i in reversed(free):
                    if held + length > self._most * MAX_HELD:
                        held -= len(buffers.pop(i))
                place = len(buffers)
                buffers.append(np.empty(length, np.uint8))
            start = -buffers[place].ctypes.data % ALIGNMENT
            return buffers[place][start : start + size]


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
