"""Layers of which only the inputs are kept: the backward pass computes them again, the feed-forward part in chunks.

A whole layer at 16,384 tokens keeps gigabytes for its backward pass, its inputs 50 MB. Computing it again costs a third
of a step's time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw the random numbers inside the block from a seed, and continue with the program's own after it.

    Args:
        seed: of the CPU's generator and of the device's; None changes nothing.
        device: that computes.
    """
    generators = [] if seed is None else [torch.default_generator]
    if generators and device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class Recomputed(torch.autograd.Function):
    """A function of tensors that keeps its arguments alone."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the function without a graph.

        Args:
            ctx: keeps what `backward` needs.
            function: tensors in, tensors out; computes the same at each call, dropout included.
            tensors: its arguments.
        """
        ctx.function = function
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute the function again, with a graph, and go back through it.

        Args:
            ctx: see `forward`.
            grads: of the results; None for those that nothing depends on.
        """
        needed = ctx.needs_input_grad[1:]
        leaves = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            outputs = ctx.function(*leaves)
        pairs = [(y, grad) for y, grad in zip(outputs, grads, strict=True) if grad is not None and y.requires_grad]
        del outputs, grads
        torch.autograd.backward([y for y, _ in pairs], [grad for _, grad in pairs])
        return None, *(leaf.grad for leaf in leaves)


class RecomputedInChunks(torch.autograd.Function):
    """A position-wise function that ends a recomputed layer: only its backward pass is needed, not its value."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[int, Tensor], Tensor], chunk_rows: int, x_BTD: Tensor) -> Tensor:
        """Return a tensor of the result's shape that holds no values.

        Args:
            ctx: keeps what `backward` needs.
            function: computes the chunk of a number.
            chunk_rows: tokens in a chunk.
            x_BTD: the function's argument.
        """
        ctx.function, ctx.chunk_rows = function, chunk_rows
        ctx.save_for_backward(x_BTD)
        return x_BTD.new_full((), torch.nan).expand(x_BTD.shape)

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[None, None, Tensor]:
        """Compute the function and go back through it, chunk by chunk; weights collect their gradients in `grad`.

        Args:
            ctx: see `forward`.
            grad_BTD: gradients of the result, which those of the argument replace in memory: the result of a layer is
                read once.
        """
        (x_BTD,) = ctx.saved_tensors
        grad_BTD = grad_BTD.contiguous()
        chunked = (x.flatten(0, 1).split(ctx.chunk_rows) for x in (x_BTD, grad_BTD))
        for number, (x, grad) in enumerate(zip(*chunked, strict=True)):
            leaf = x[None].detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.function(number, leaf)
            torch.autograd.backward(y, grad[None])
            grad.copy_(leaf.grad[0])
        return None, None, grad_BTD
