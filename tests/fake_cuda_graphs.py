"""CUDA graphs on the CPU: operations are recorded during capture, and repeated on the same memory by each replay.

As on CUDA, Python does not run again: Python numbers become constants, and reading a value during capture is an error.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pegasusx_torch.attention
import pegasusx_torch.normalization
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SYNCHRONIZES = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


class Graph:
    """Replaces `torch.cuda.CUDAGraph`."""

    recorded: ClassVar[list["Graph"]] = []

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        Graph.recorded.append(self)

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, captured in self.operations:
            replayed = function(*args, **kwargs)
            for old, new in zip(tensors(captured), tensors(replayed), strict=True):
                if memory(old) != memory(new):
                    old.copy_(new)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in SYNCHRONIZES:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        output = function(*args, **(kwargs or {}))
        self.graph.operations.append((function, args, kwargs or {}, output))
        return output


class Stream:
    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: "Stream") -> None:
        pass


@contextmanager
def record(graph: Graph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
    """Replaces `torch.cuda.graph`: results are NaN until the first replay."""
    assert isinstance(stream, Stream), "torch's own stream belongs to the device that captured first"
    assert not gc.isenabled(), "freeing a graph invalidates a capture"
    with Recorder(graph), pytest.MonkeyPatch.context() as patch:
        for module in (pegasusx_torch.attention, pegasusx_torch.normalization):
            patch.setattr(module, "may_read", lambda tensor: False)  # as on CUDA
        yield
    for _, args, kwargs, output in graph.operations:
        inputs = {memory(tensor) for tensor in tensors((args, kwargs))}
        for tensor in tensors(output):
            if tensor.is_floating_point() and memory(tensor) not in inputs:
                tensor.fill_(torch.nan)


REPLACED = {
    "CUDAGraph": Graph,
    "graph": record,
    "Stream": Stream,
    "current_stream": Stream,
    "stream": lambda stream: nullcontext(),
    "device": lambda device: nullcontext(),
}
