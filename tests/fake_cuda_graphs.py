"""CUDA graphs on the CPU: what is done while one is recorded is done again, on the same memory, when it is replayed.

Like CUDA this knows nothing of Python: a number that is baked in stays, and a value cannot be asked for meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS_THE_DEVICE = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}


class Graph:
    """In the place of `torch.cuda.CUDAGraph`."""

    recorded: ClassVar[list["Graph"]] = []

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0
        Graph.recorded.append(self)

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, before in self.operations:
            after = function(*args, **kwargs)
            for old, new in zip(tensors(before), tensors(after), strict=True):
                if memory(old) != memory(new):
                    old.copy_(new)


def tensors(found: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]


def memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in ASKS_THE_DEVICE:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        found = function(*args, **(kwargs or {}))
        self.graph.operations.append((function, args, kwargs or {}, found))
        return found


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass


@contextmanager
def record(graph: Graph, capture_error_mode: str) -> Iterator[None]:
    """In the place of `torch.cuda.graph`: before the first replay, results hold NaN."""
    with Recorder(graph):
        yield
    for _, args, kwargs, found in graph.operations:
        given = {memory(tensor) for tensor in tensors((args, kwargs))}
        for tensor in tensors(found):
            if tensor.is_floating_point() and memory(tensor) not in given:
                tensor.fill_(torch.nan)


REPLACED = {
    "CUDAGraph": Graph,
    "graph": record,
    "Stream": Stream,
    "current_stream": Stream,
    "stream": lambda stream: nullcontext(),
    "device": lambda device: nullcontext(),
}
