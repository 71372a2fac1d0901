"""Decode steps as CUDA graphs: a step is many small kernels, each of which takes longer to launch than to run."""

from collections.abc import Callable

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
        # Libraries initialize themselves at their first call, which cannot be captured: warm up on another stream.
        current, warm_up = torch.cuda.current_stream(), torch.cuda.Stream()
        warm_up.wait_stream(current)
        with torch.cuda.stream(warm_up):
            self._step(*self._inputs)
        current.wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with process_settings, torch.cuda.graph(graph, capture_error_mode="thread_local"):  # one capture at a time
            result = self._step(*self._inputs)
        return graph, result
