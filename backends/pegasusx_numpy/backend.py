"""The golden operations at the CPU's speed: in pieces that fit its cache, on all its cores, without needless copies."""

from collections.abc import Callable

import numpy as np

from pegasusx_numpy.attention import attention
from pegasusx_numpy.global_local import global_local_attend
from pegasusx_numpy.products import linear
from pegasusx_numpy.threads import WORTH_SHARING, for_each, split
from pegasusx_ref.backend import GoldenBackend, is_core_traced
from pegasusx_ref.golden import embedding, feed_forward
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing import wanted

ROWS = 1024  # tokens of a piece at the most: so many that weights, which each piece reads again, cost little
LITTLE = 2**20  # multiplications that cost less than the thought of how to do them faster
MANY, NUMBERS = 2**20, 2**16  # of an activation that is cut up, and of each piece


class NumpyBackend(GoldenBackend):
    """NumPy on all cores of the CPU, in float64 or float32. Each operation means what the golden one says."""

    name = "numpy"

    def apply_in_chunks(self, function: Callable[[np.ndarray], np.ndarray], x_BTD: np.ndarray) -> np.ndarray:
        """Take some hundred tokens at a time, on all cores."""
        B, T, D = x_BTD.shape
        if B * T <= ROWS:
            return function(x_BTD)
        x_rows = x_BTD.reshape(1, B * T, D)
        found_rows = np.empty_like(x_rows)

        def work(some: slice) -> None:
            found_rows[:, some] = function(x_rows[:, some])

        for_each(split(B * T, ROWS), work)
        return found_rows.reshape(B, T, D)

    def add_positions(self, x_BTD: np.ndarray, start: int) -> np.ndarray:
        """Take some hundred tokens at a time: positions are float64, several times as large as the tokens."""
        T = x_BTD.shape[1]
        if T <= ROWS:
            return embedding.add_positions(x_BTD, start)
        found_BTD = np.empty_like(x_BTD)

        def work(some: slice) -> None:
            found_BTD[:, some] = embedding.add_positions(x_BTD[:, some], start + some.start)

        for_each(split(T, ROWS), work)
        return found_BTD

    def linear(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        """Spread output features over the cores; the golden function where there is little to do."""
        multiply = feed_forward.linear if x.size * len(weight) <= LITTLE else linear
        return multiply(x, weight, bias)

    linear_full_precision = linear

    def activation(self, x: np.ndarray, name: str) -> np.ndarray:
        """Take some numbers at a time, on all cores."""
        if x.size <= MANY:
            return feed_forward.activation(x, name)
        flat, found = x.reshape(-1), np.empty(x.size, dtype=x.dtype)

        def work(start: int) -> None:
            piece = slice(start, start + NUMBERS)
            found[piece] = feed_forward.activation(flat[piece], name)

        for_each(range(0, x.size, NUMBERS), work)
        return found.reshape(x.shape)

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        """Copy where it is not."""
        return np.ascontiguousarray(array)

    def attention(
        self, q_BHLF: np.ndarray, k_BHXF: np.ndarray, v_BHXF: np.ndarray, visible: np.ndarray | None = None
    ) -> np.ndarray:
        """Spread heads over the cores; the golden function where someone listens, or where there is little to do."""
        is_traced = any(map(wanted, ("scores", "probs", "context")))
        is_little = q_BHLF.size * k_BHXF.shape[2] <= LITTLE
        attend = super().attention if is_traced or is_little else attention
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
        """Spread heads and blocks over the cores; the golden function where someone listens, or they are small."""
        num_keys = global_k_BHGF.shape[2] + max(stop - start for start, stop in blocks)
        arguments = (q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF, key_mask_BT, blocks)
        if is_core_traced(blocks) or q_BHTF.size * num_keys <= WORTH_SHARING:
            return super().global_local_attention(*arguments)
        return global_local_attend(*arguments)
