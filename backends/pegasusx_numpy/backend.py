"""The golden operations at the CPU's speed: in chunks that fit its cache, on all its cores, without needless copies."""

from collections.abc import Callable
from copy import copy
from typing import Any, Self

import numpy as np

from pegasusx_numpy import quantized
from pegasusx_numpy.attention import attention
from pegasusx_numpy.global_local import global_local_attention
from pegasusx_numpy.linear import linear
from pegasusx_numpy.thread_pool import MIN_PARALLEL_MACS, balanced_chunks, parallel_for
from pegasusx_numpy.top_k import stable_top_k
from pegasusx_numpy.workspace import empty, workspace
from pegasusx_ref.backend import GoldenBackend, QuantizedMatrix, is_core_traced
from pegasusx_ref.golden import embedding, feed_forward, normalization
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing import wanted

MAX_CHUNK_TOKENS = 1024  # large enough that reading the weights again for each chunk costs little
MIN_OPTIMIZED_MACS = 2**20  # multiply-adds: for less work the golden function is as fast
MAX_CACHED_NUMBERS = 2**16  # of a chunk of an operation that passes over it several times
MIN_CHUNKED_ACTIVATIONS = 2**20  # numbers: smaller tensors are computed at once


def apply_in_chunks(function: Callable[[np.ndarray], np.ndarray], x_BTD: np.ndarray, max_tokens: int) -> np.ndarray:
    """Apply a function of single tokens to chunks of at most some number of tokens, on all cores."""
    B, T, D = x_BTD.shape
    if max_tokens >= B * T:
        return function(x_BTD)
    x_rows = x_BTD.reshape(1, B * T, D)
    y_rows = empty(x_rows.shape, x_rows.dtype)

    def work(chunk: slice) -> None:
        y_rows[:, chunk] = function(x_rows[:, chunk])

    parallel_for(balanced_chunks(B * T, max_tokens), work)
    return y_rows.reshape(B, T, D)


class NumpyBackend(GoldenBackend):
    """NumPy on all cores of the CPU, in float64 or float32; each operation computes the golden function of its name."""

    name = "numpy"

    _has_quantized = False

    def for_quantized_model(self) -> Self:
        """Return a backend that multiplies vectors by compiled loops, whatever the matrix."""
        backend = copy(self)
        backend._has_quantized = True
        return backend

    def apply_in_chunks(self, function: Callable[[np.ndarray], np.ndarray], x_BTD: np.ndarray) -> np.ndarray:
        """Compute chunks of some hundred tokens on all cores."""
        return apply_in_chunks(function, x_BTD, MAX_CHUNK_TOKENS)

    def layer_norm(self, x_BTD: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray, eps: float) -> np.ndarray:
        """Compute chunks that stay in the cache on all cores: the golden function goes over them eight times."""

        def of_chunk(x_BTD: np.ndarray) -> np.ndarray:
            return normalization.layer_norm(x_BTD, weight_D, bias_D, eps)

        return apply_in_chunks(of_chunk, x_BTD, max(MAX_CACHED_NUMBERS // len(weight_D), 1))

    def add_positions(self, x_BTD: np.ndarray, start: int) -> np.ndarray:
        """Compute chunks of some hundred tokens: the float64 positions are several times as large as the tokens."""
        T = x_BTD.shape[1]
        if T <= MAX_CHUNK_TOKENS:
            return embedding.add_positions(x_BTD, start)
        y_BTD = np.empty_like(x_BTD)

        def work(chunk: slice) -> None:
            y_BTD[:, chunk] = embedding.add_positions(x_BTD[:, chunk], start + chunk.start)

        parallel_for(balanced_chunks(T, MAX_CHUNK_TOKENS), work)
        return y_BTD

    def linear(self, x: np.ndarray, weight: Any, bias: np.ndarray | None = None) -> np.ndarray:
        """Compute output features on all cores; call the golden function for small products."""
        if isinstance(weight, QuantizedMatrix) or (self._has_quantized and quantized.takes_vector(x, weight)):
            return quantized.linear(x, weight, bias)
        multiply = feed_forward.linear if x.size * len(weight) <= MIN_OPTIMIZED_MACS else linear
        return multiply(x, weight, bias)

    linear_full_precision = linear

    stable_top_k = staticmethod(stable_top_k)

    def activation(self, x: np.ndarray, name: str) -> np.ndarray:
        """Compute chunks on all cores."""
        if x.size <= MIN_CHUNKED_ACTIVATIONS:
            return feed_forward.activation(x, name)
        x_flat, y_flat = x.reshape(-1), empty((x.size,), x.dtype)

        def work(start: int) -> None:
            chunk = slice(start, start + MAX_CACHED_NUMBERS)
            y_flat[chunk] = feed_forward.activation(x_flat[chunk], name)

        parallel_for(range(0, x.size, MAX_CACHED_NUMBERS), work)
        return y_flat.reshape(x.shape)

    workspace = staticmethod(workspace)

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Add, into memory of the workspace."""
        total: np.ndarray = np.add(x, y, out=empty(x.shape, np.result_type(x, y)))
        return total

    def lay_out(self, k_BHXF: np.ndarray, v_BHXF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copy them head by head, and the keys of a head feature by feature: BLAS reads both products row by row."""
        return np.ascontiguousarray(k_BHXF.swapaxes(2, 3)).swapaxes(2, 3), np.ascontiguousarray(v_BHXF)

    def attention(
        self, q_BHLF: np.ndarray, k_BHXF: np.ndarray, v_BHXF: np.ndarray, visible: np.ndarray | None = None
    ) -> np.ndarray:
        """Compute heads on all cores; call the golden function if a listener records it, and for small inputs."""
        is_traced = any(map(wanted, ("scores", "probs", "context")))
        is_small = q_BHLF.size * k_BHXF.shape[2] <= MIN_OPTIMIZED_MACS
        attend = super().attention if is_traced or is_small else attention
        return attend(q_BHLF, k_BHXF, v_BHXF, visible)

    def global_local_attention(
        self,
        q_BHTF: np.ndarray,
        k_BHTF: np.ndarray,
        v_BHTF: np.ndarray,
        global_q_BHGF: np.ndarray,
        global_k_BHGF: np.ndarray,
        global_v_BHGF: np.ndarray,
        key_mask_BT: np.ndarray | None,
        blocks: Blocks,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute heads and blocks on all cores; call the golden function if it is traced, and for small inputs."""
        num_keys = global_k_BHGF.shape[2] + max(stop - start for start, stop in blocks)
        is_golden = is_core_traced(blocks) or q_BHTF.size * num_keys <= MIN_PARALLEL_MACS
        attend = super().global_local_attention if is_golden else global_local_attention
        return attend(q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF, key_mask_BT, blocks)
