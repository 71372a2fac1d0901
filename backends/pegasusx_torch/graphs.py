"""Steps that CUDA records once and replays: decoding is many small kernels, each slower to start than to run."""

from collections.abc import Callable

import torch
from torch import Tensor


class Replayed:
    """A function of tensors as a CUDA graph: recorded at its first call, replayed at every later one.

    Args:
        step: does all its work on the device, and keeps what it keeps by writing in place.
        device: a CUDA device.
    """

    def __init__(self, step: Callable[..., Tensor], device: torch.device) -> None:
        self._step, self._device = step, device
        self._arguments: list[Tensor] = []
        self._recording: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def __call__(self, *arguments: Tensor) -> Tensor:
        """Put the arguments where the graph reads them, and replay it; the next call writes over the result."""
        with torch.cuda.device(self._device):
            if self._recording is None:
                self._arguments = [argument.clone() for argument in arguments]
                self._recording = self._record()
            graph, result = self._recording
            for place, argument in zip(self._arguments, arguments, strict=True):
                if place.shape != argument.shape:  # a copy would broadcast it
                    raise ValueError(f"recorded with shape {tuple(place.shape)}, called with {tuple(argument.shape)}")
                place.copy_(argument)
            graph.replay()
        return result

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # Libraries make themselves ready at their first call, which cannot be recorded: it runs on another stream.
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            self._step(*self._arguments)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self._step(*self._arguments)
        return graph, result
