"""Decode steps as CUDA graphs: a step is many small kernels, each of which takes longer to launch than to run."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from pegasusx_ref.backend.captured_steps import set_inputs
from pegasusx_torch.precision import process_settings


class CudaGraphStep:
    """A function of tensors that is captured as a CUDA graph at its first call and replayed at every later one.

    Args:
        step: works on the device alone, and updates its state in place.
        device: a CUDA device.
    """

    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self._step, self._device = step, device
        self._inputs: list[Tensor] = []
        self._captured: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Copy the arguments to the graph's inputs and replay it; the next call overwrites the result."""
        with torch.cuda.device(self._device):
            if self._captured is None:
                self._inputs = [argument.clone() for argument in arguments]
                self._captured = self._capture()
            graph, result = self._captured
            set_inputs(self._inputs, arguments)
            graph.replay()
        return result

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        current, (warm_up, capture) = torch.cuda.current_stream(), streams(self._device)
        # Libraries initialize themselves at their first call, which cannot be captured: warm up on another stream.
        warm_up.wait_stream(current)
        with torch.cuda.stream(warm_up):
            self._step(*self._inputs)
        current.wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        capturing = torch.cuda.graph(graph, stream=capture, capture_error_mode="thread_local")
        # One capture at a time. A capture that fails does not leave its stream by itself.
        with process_settings, paused_garbage_collection(), torch.cuda.stream(current), capturing:
            result = self._step(*self._inputs)
        return graph, result


@cache
def streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return a device's streams for warming up and for capturing.

    torch's own stream for captures belongs to the device that captured first, and for every stream torch keeps a
    workspace of cuBLAS, 32 MiB on an H100. The two differ because a graph that is freed frees that of its stream.
    """
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Keep Python from freeing another graph during a capture, which would invalidate it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
