"""The model in a simulated arithmetic: rounded operands, sums, results, softmax and parameters."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.golden import embedding, feed_forward, normalization
from pegasusx_ref.golden.attention import softmax
from pegasusx_ref.tracing import tap

Round = Callable[[np.ndarray], np.ndarray]


def to(dtype: Any) -> Round:
    """Return the rounding to a dtype, in float32."""
    return lambda x: x.astype(dtype).astype(np.float32)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Round to eleven significant bits."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def exact(x: np.ndarray) -> np.ndarray:
    """Return float32."""
    return x.astype(np.float32)


def in_parts(round_to: Round, parts: int, most: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a product of operands that are sums of parts in low precision; small parts are not multiplied.

    Args:
        round_to: the low precision.
        parts: of an operand.
        most: products of parts i and j are added where i + j is at most this.
    """

    def split(x: np.ndarray) -> list[np.ndarray]:
        found, rest = [], x.astype(np.float64)
        for _ in range(parts):
            found.append(round_to(rest.astype(np.float32)))
            rest = rest - found[-1]
        return found

    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        xs, ys = split(x), split(y)
        terms = [xs[i] @ ys[j] for i in range(parts) for j in range(parts) if i + j <= most]
        return np.asarray(np.sum(terms[::-1], axis=0, dtype=np.float32))

    return product


def accumulated(round_to: Round) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a product whose sums are rounded after each term, as its operands are."""

    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = round_to(x), round_to(y)
        total = np.zeros((*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]), np.float32)
        for i in range(x.shape[-1]):
            total = round_to(total + x[..., i, None] * y[..., i, None, :])
        return total

    return product


BFLOAT16, FLOAT16 = to(ml_dtypes.bfloat16), to(np.float16)
PRODUCTS = {
    "float32": in_parts(exact, 1, 0),
    "tf32": in_parts(to_tf32, 1, 0),
    "TF32_TF32_F32_X3": in_parts(to_tf32, 2, 1),
    "BF16_BF16_F32": in_parts(BFLOAT16, 1, 0),
    "BF16_BF16_F32_X3": in_parts(BFLOAT16, 2, 1),
    "BF16_BF16_F32_X6": in_parts(BFLOAT16, 3, 2),
    "BF16_BF16_BF16": accumulated(BFLOAT16),
    "F16_F16_F32": in_parts(FLOAT16, 1, 0),
    "F16_F16_F16": accumulated(FLOAT16),
    "bfloat16": in_parts(exact, 1, 0),
    "float16": in_parts(exact, 1, 0),
}
RESULTS = {"bfloat16": BFLOAT16, "float16": FLOAT16, "F16_F16_F16": FLOAT16}


class SimulatedBackend(GoldenBackend):
    """The golden operations in float32, with the roundings of an arithmetic.

    Args:
        arithmetic: a key of `PRODUCTS`.
        of_softmax: rounds inside a softmax.
        of_parameters: rounds weights where they are used.
        products: the arithmetic of products, where it is another one.
    """

    name = "simulated"

    def __init__(
        self, arithmetic: str, of_softmax: Round = exact, of_parameters: Round = exact, products: str = ""
    ) -> None:
        super().__init__("cpu", "float32")
        self._multiply, self._result = PRODUCTS[products or arithmetic], RESULTS.get(arithmetic, exact)
        self._of_softmax, self._of_parameters = of_softmax, of_parameters

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        weight = self._of_parameters(weight)
        total = self._multiply(x.reshape(-1, x.shape[-1]), weight.T).reshape(*x.shape[:-1], -1)
        return self._result(total if bias is None else total + self._of_parameters(bias))

    linear_full_precision = linear

    def embed_tokens(self, ids_BT: Any, table_VD: Any, scale: float) -> Any:
        return self._result(embedding.embed_tokens(ids_BT, self._of_parameters(table_VD), float(np.float32(scale))))

    def add_positions(self, x_BTD: Any, start: int) -> Any:
        return self._result(embedding.add_positions(x_BTD.astype(np.float64), start))

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        return self._result(normalization.layer_norm(x, self._of_parameters(weight), self._of_parameters(bias), eps))

    def activation(self, x: Any, name: str) -> Any:
        return self._result(feed_forward.activation(x, name))

    def add(self, x: Any, y: Any) -> Any:
        return self._result(x + y)

    def attention(self, q_BHLF: Any, k_BHXF: Any, v_BHXF: Any, visible: Any = None, num_apart: int = 0) -> Any:
        scores = self._multiply(self._result(q_BHLF * np.float32(q_BHLF.shape[3] ** -0.5)), k_BHXF.swapaxes(2, 3))
        scores = self._result(scores)
        if visible is not None:
            scores = np.where(visible[:, None], scores, np.finfo(np.float32).min)
        scores = tap("scores", scores)
        if self._of_softmax is exact:
            probs = softmax(scores)
        else:
            exponentials = self._of_softmax(np.exp(self._of_softmax(scores - scores.max(axis=-1, keepdims=True))))
            probs = exponentials / self._of_softmax(exponentials.sum(axis=-1, keepdims=True))
        probs = tap("probs", self._result(self._of_softmax(probs)))
        return tap("context", self._result(self._multiply(probs, v_BHXF)))
