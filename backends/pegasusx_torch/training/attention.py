"""Attention on a CPU under autograd: it keeps queries, keys and values, and computes probabilities again.

A work item is one head of a batch row, computed by NumPy: where MKL is slow, its products are faster than those of
torch's fused kernel, and they run beside those of the other heads. It needs less memory, has dropout of its own, with
which torch would keep the scores of all heads, and converts half precision to float32 head by head.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from pegasusx_numpy.attention import exp_in_place
from pegasusx_numpy.thread_pool import parallel_for
from torch import Tensor

from pegasusx_torch.attention import empty_context
from pegasusx_torch.linear import IS_MKL_SLOW
from pegasusx_torch.training.dropout import Dropout

# Scores of a head. With fewer, Python's part of each head takes longer than its products; with many, the keys that
# torch's kernel needs, joined with the global ones, are a tenth of a training step's memory.
MIN_SCORES, MANY_SCORES = 2**16, 2**18


def prefers_single_heads(q_BHLF: Tensor, num_scores: int, dropout: float) -> bool:
    """Return whether this module's attention is faster, or needs less memory, than torch's fused kernel.

    Args:
        q_BHLF: queries.
        num_scores: the largest number of scores of a head.
        dropout: of the probabilities; with it, torch's kernel is not fused.
    """
    return q_BHLF.device.type == "cpu" and num_scores >= (MIN_SCORES if IS_MKL_SLOW or dropout else MANY_SCORES)


def float32_on_cpu(x: Tensor) -> Tensor:
    """Convert half precision on a CPU to float32: not every processor computes with it, none of them with all bits."""
    return x.float() if x.device.type == "cpu" and x.dtype.itemsize < 4 else x


class Group(NamedTuple):
    """Queries that attend to the same keys.

    Attributes:
        queries: a slice of the queries.
        keys: an index of the keys, each at most once.
        masked: True where a query may not attend to a key (S or 1, X); None means nowhere.
    """

    queries: slice
    keys: Any
    masked: np.ndarray | None = None


class Attention(torch.autograd.Function):
    """Attention of groups of queries, for each head of each batch row."""

    @staticmethod
    def forward(
        ctx: Any, groups: Sequence[Sequence[Group]], dropout: Dropout, is_reused: bool, *qkv: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute the attended values.

        Args:
            ctx: keeps what `backward` needs.
            groups: of each batch row, every query in one of them.
            dropout: of the probabilities.
            is_reused: whether the gradients may replace queries, keys and values in memory: nothing else reads these,
                and there is one backward pass.
            qkv: queries, keys and values (B, H, length, F), each in one or several streams that stand one after the
                other: those of the global tokens, then those of the tokens.

        Returns:
            Attended values of each stream of queries.
        """
        ctx.groups, ctx.dropout, ctx.is_reused = groups, dropout, is_reused
        ctx.save_for_backward(*qkv)
        queries, keys, values = thirds(qkv)
        contexts = [empty_context(x_BHLF) for x_BHLF in queries]

        def work(head: tuple[int, int]) -> None:
            q_LF, k_XF, v_XF = (joined(streams, head) for streams in (queries, keys, values))
            context_LF, scratch = np.empty_like(q_LF), Scratch()
            for n, group in enumerate(groups[head[0]]):
                exp_SU, sums_S1 = exponentials(q_LF[group.queries], k_XF[group.keys], group.masked, scratch)
                kept_SU = dropout.kept(exp_SU.shape, *head, n)
                if kept_SU is not None:
                    exp_SU *= kept_SU
                context_LF[group.queries] = (exp_SU @ v_XF[group.keys]) * (dropout.scale / sums_S1)
            write(contexts, head, context_LF)

        for_each_head(qkv[0], work)
        return tuple(contexts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of queries, keys and values, see chapter 19.7.

        Args:
            ctx: see `forward`.
            grads: of the attended values.
        """
        inputs = [x_BHLF.detach() for x_BHLF in ctx.saved_tensors]
        found = inputs if ctx.is_reused else [empty_context(x_BHLF) for x_BHLF in inputs]

        def work(head: tuple[int, int]) -> None:
            grad_LF, q_LF, k_XF, v_XF = (joined(streams, head) for streams in (grads, *thirds(inputs)))
            results = head_backward(grad_LF, q_LF, k_XF, v_XF, ctx.groups[head[0]], ctx.dropout, head)
            for streams, result in zip(thirds(found), results, strict=True):
                write(streams, head, result)

        for_each_head(inputs[0], work)
        return None, None, None, *found


def head_backward(
    grad_LF: np.ndarray,
    q_LF: np.ndarray,
    k_XF: np.ndarray,
    v_XF: np.ndarray,
    groups: Sequence[Group],
    dropout: Dropout,
    head: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go back through one head; keys and values collect gradients from every group.

    The matrices of all queries and keys take most of the time besides products. So the exponentials stay without their
    sums, by which the gradients of the attended values are divided instead.

    Args:
        grad_LF: gradients of the attended values (L, F).
        q_LF: queries (L, F).
        k_XF: keys (X, F).
        v_XF: values (X, F).
        groups: of the queries.
        dropout: of the probabilities.
        head: numbers of the batch row and the head.

    Returns:
        Gradients of queries, keys and values.
    """
    grad_q_LF, grad_k_XF, grad_v_XF = np.empty_like(q_LF), np.zeros_like(k_XF), np.zeros_like(v_XF)
    scale, of_exp, of_grad, of_kept = q_LF.shape[1] ** -0.5, Scratch(), Scratch(), Scratch()
    for n, (queries, keys, masked) in enumerate(groups):
        q_SF, k_UF = q_LF[queries], k_XF[keys]
        exp_SU, sums_S1 = exponentials(q_SF, k_UF, masked, of_exp)
        grad_SF = grad_LF[queries] * (dropout.scale / sums_S1)
        grad_SU = np.matmul(grad_SF, v_XF[keys].T, out=of_grad.array(exp_SU.shape, exp_SU.dtype))
        kept_SU, used_SU = dropout.kept(exp_SU.shape, *head, n), exp_SU
        if kept_SU is not None:
            grad_SU *= kept_SU
            used_SU = np.multiply(exp_SU, kept_SU, out=of_kept.array(exp_SU.shape, exp_SU.dtype))
        grad_v_XF[keys] += used_SU.T @ grad_SF
        grad_SU -= np.einsum("su,su->s", grad_SU, exp_SU)[:, None] / sums_S1
        grad_SU *= exp_SU  # now the gradients of the scores
        if masked is not None:
            np.copyto(grad_SU, 0, where=masked)
        grad_q_LF[queries] = (grad_SU @ k_UF) * scale
        grad_k_XF[keys] += grad_SU.T @ (q_SF * scale)
    return grad_q_LF, grad_k_XF, grad_v_XF


class Scratch:
    """Memory for matrices of queries and keys, used again for each group: new memory takes as long as a product."""

    def __init__(self) -> None:
        self._memory = np.empty(0)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an uninitialized array, in memory that the last one no longer needs."""
        if self._memory.size < prod(shape) or self._memory.dtype != dtype:
            self._memory = np.empty(prod(shape), dtype)
        return self._memory[: prod(shape)].reshape(shape)


def exponentials(
    q_SF: np.ndarray, k_UF: np.ndarray, masked: np.ndarray | None, scratch: Scratch
) -> tuple[np.ndarray, np.ndarray]:
    """Compute probabilities (S, U) without the division by their sums (S, 1), and these.

    Args:
        q_SF: queries (S, F).
        k_UF: keys (U, F).
        masked: see `Group`; a query whose keys are all masked gets equal probabilities.
        scratch: for the probabilities.
    """
    scores_SU = scratch.array((len(q_SF), len(k_UF)), q_SF.dtype)
    np.matmul(q_SF * q_SF.shape[1] ** -0.5, k_UF.T, out=scores_SU)
    return scores_SU, exp_in_place(scores_SU, masked)


def for_each_head(x_BHLF: Tensor, work: Callable[[tuple[int, int]], None]) -> None:
    """Call `work` for each pair of a batch row and a head, on as many threads as torch may use."""
    parallel_for(list(np.ndindex(*x_BHLF.shape[:2])), work, torch.get_num_threads())


def thirds(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """Split queries, keys and values."""
    n = len(tensors) // 3
    return tensors[:n], tensors[n : 2 * n], tensors[2 * n :]


def joined(streams: Sequence[Tensor], head: tuple[int, int]) -> np.ndarray:
    """Return one head of all streams as an array, half precision as float32."""
    arrays = [x.detach()[head].to(torch.promote_types(x.dtype, torch.float32)).numpy() for x in streams]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def write(streams: Sequence[Tensor], head: tuple[int, int], x_LF: np.ndarray) -> None:
    """Write one head of all streams."""
    stop = 0
    for stream in streams:
        start, stop = stop, stop + stream.shape[2]
        stream[head] = torch.from_numpy(x_LF[start:stop])
