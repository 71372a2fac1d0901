"""Decode steps as CUDA graphs: a step is many small kernels, each of which takes longer to launch than to run."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import Any

import cupy

from pegasusx_cupy.kernels import FEW
from pegasusx_ref.backend.captured_steps import set_inputs
from pegasusx_ref.errors import BackendError, reason

_capturing = Lock()  # one thread at a time: all captures of a device share a stream


class CudaGraphStep:
    """A function of arrays that is captured as a CUDA graph at its first call and launched at every later one.

    With more than `FEW` rows it is called as it is, because linear maps are cuBLAS's then, which CuPy does not capture.

    Args:
        step: works on the device alone, and updates its state in place; its first argument has the rows (B, L, D).
        device: a CUDA device.
    """

    def __init__(self, step: Callable[..., Any], device: Any) -> None:
        self._step, self._device = step, device
        self._inputs: list[Any] = []
        self._captured: tuple[Any, Any] | None = None
        with device:
            self._launched = cupy.cuda.Event(disable_timing=True)
            # The graph's own memory, from CuPy's pool: blocks that are free there may leave the process at any time.
            pool = cupy.get_default_memory_pool()
            self._memory = cupy.cuda.MemoryPool(pool.malloc)
            self._memory.set_limit(size=0)  # none: at a limit of its own it would give away what is captured

    def __del__(self) -> None:
        # CuPy 14 does not free the memory of a pool that is gone. When Python ends, CuPy may be gone too.
        with suppress(Exception), self._device:
            if self._captured is not None:
                self._launched.synchronize()  # other captures can have the memory next
            self._captured = None
            self._memory.free_all_blocks()

    def __call__(self, *arguments: Any) -> Any:
        """Copy the arguments to the graph's inputs and launch it; the next call overwrites the result.

        Raises:
            BackendError: CuPy cannot capture the step.
            MemoryError: it needs more memory than the device has.
        """
        self._device.use()
        if math.prod(arguments[0].shape[:-1]) > FEW:
            return self._step(*arguments)
        if self._captured is None:
            self._inputs = [argument.copy() for argument in arguments]
            try:
                with _capturing:
                    self._captured = self._capture()
            except MemoryError:
                raise
            except Exception as error:
                remedy = "pass cache_implementation='dynamic', whose steps are not captured"
                raise BackendError(f"CuPy cannot capture a step as a CUDA graph ({reason(error)}): {remedy}") from error
        graph, result = self._captured
        set_inputs(self._inputs, arguments)
        graph.launch()
        self._launched.record()
        return result

    def _capture(self) -> tuple[Any, Any]:
        current, stream = cupy.cuda.get_current_stream(), capture_stream(self._device.id)
        current.synchronize()
        with stream, cupy.cuda.using_allocator(self._memory.malloc):
            # Compiles kernels, and copies tables to the device: neither can be captured.
            try:
                first = self._step(*self._inputs)
            finally:  # the caches may be freed next, in the order of another stream
                stream.synchronize()
        result = cupy.empty(first.shape, first.dtype)  # not in the graph's memory, which is freed as a whole
        del first
        with stream, cupy.cuda.using_allocator(self._memory.malloc):
            stream.begin_capture()
            try:
                result[...] = self._step(*self._inputs)
            except BaseException:
                with suppress(Exception):
                    stream.end_capture()
                raise
            return stream.end_capture(), result


@cache
def capture_stream(device: int) -> Any:
    """Return the stream that graphs of the current device are captured on: free memory stays with its stream."""
    return cupy.cuda.Stream(non_blocking=True)
