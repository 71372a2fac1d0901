"""Decode steps as CUDA graphs: a step is many small kernels, each of which takes longer to launch than to run."""

import math
from collections.abc import Callable
from typing import Any

import cupy

from pegasusx_cupy.kernels import FEW
from pegasusx_ref.errors import BackendError, reason


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
        self._memory = cupy.cuda.MemoryPool()  # the graph's own: blocks that are free in CuPy's may leave the process

    def __call__(self, *arguments: Any) -> Any:
        """Copy the arguments to the graph's inputs and launch it; the next call overwrites the result.

        Raises:
            BackendError: CuPy cannot capture the step.
        """
        self._device.use()
        if math.prod(arguments[0].shape[:-1]) > FEW:
            return self._step(*arguments)
        if self._captured is None:
            self._inputs = [argument.copy() for argument in arguments]
            try:
                self._captured = self._capture()
            except Exception as error:
                remedy = "pass cache_implementation='dynamic', whose steps are not captured"
                raise BackendError(f"CuPy cannot capture a step as a CUDA graph ({reason(error)}): {remedy}") from error
        graph, result = self._captured
        for graph_input, argument in zip(self._inputs, arguments, strict=True):
            if graph_input.shape != argument.shape:  # copying would broadcast it
                raise ValueError(
                    f"called with shape {argument.shape}: the graph was captured with {graph_input.shape}; "
                    "compile another step for it"
                )
            graph_input[...] = argument
        graph.launch()
        return result

    def _capture(self) -> tuple[Any, Any]:
        self._device.synchronize()  # another stream begins
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream, cupy.cuda.using_allocator(self._memory.malloc):
            self._step(*self._inputs)  # compiles kernels, and copies tables to the device: neither can be captured
            stream.synchronize()
            stream.begin_capture()
            try:
                result = self._step(*self._inputs)
            finally:
                graph = stream.end_capture()
        return graph, result
