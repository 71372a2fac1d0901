"""The golden operations on estimates: each computes its result and the rounding error that it may have. [spec 16]"""

from collections.abc import Callable
from typing import Any

import numpy as np

from pegasusx_ref.backend import GoldenBackend, QuantizedMatrix
from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden import embedding, feed_forward, head, normalization
from pegasusx_ref.golden.attention import softmax
from pegasusx_ref.golden.global_local import Blocks, see_globals
from pegasusx_ref.tracing import scope, tap
from pegasusx_ref.verification import error_bounds
from pegasusx_ref.verification.error_bounds import Arithmetic, Errors, rounding_errors
from pegasusx_ref.verification.estimate import Estimate, Origin, concatenate

LOWEST = np.finfo(np.float64).min  # a masked score of the golden functions
HIDDEN = -1e3  # a candidate's masked score is at most this: some masks add -10000, float16's lowest number is -65504


class CheckingOperations(GoldenBackend):
    """The golden operations in float64, each with the errors of the candidate's arithmetic. [spec 16.9]

    Args:
        arithmetic: what the candidate computes in.
        seed: of the samples for tensors that the candidate does not show.
    """

    name = "verification"

    def __init__(self, arithmetic: Arithmetic, seed: int = 0) -> None:
        super().__init__("cpu", "float64")
        self.arithmetic = arithmetic
        self._rng = np.random.default_rng(seed)
        # The golden result is rounded too, which matters only where the candidate computes in float64.
        self._error_scale = 2.0 if arithmetic.name == "float64" else 1.0

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return the value."""
        return array.value if isinstance(array, Estimate) else array

    def exact(self, array: Any) -> Estimate:
        """Wrap an array that has no error."""
        return array if isinstance(array, Estimate) else Estimate(self._rng, array, array)

    def _apply(
        self,
        operation: str,
        golden: Callable[..., np.ndarray],
        errors: Callable[..., Errors],
        *inputs: Estimate,
        **settings: Any,
    ) -> Estimate:
        """Run an operation on the candidate's tensors, on the clean ones, and on the samples if there are any."""
        values = [x.value for x in inputs]
        value = golden(*values)
        clean = value if all(x.value is x.clean for x in inputs) else golden(*(x.clean for x in inputs))
        variance, bound = errors(*values, value)
        scaled = Errors(variance * self._error_scale, bound * self._error_scale)
        origin = Origin(operation, within_sublayer(operation, inputs), settings, golden)
        if all(x.is_known for x in inputs):
            return Estimate(self._rng, value, clean, errors=scaled, origin=origin)
        deviation = np.sqrt(scaled.variance)
        samples = [
            golden(*arrays) + deviation * self._rng.standard_normal(value.shape)
            for arrays in zip(*(x.samples() for x in inputs), strict=True)
        ]
        return Estimate(self._rng, value, clean, samples=samples, origin=origin)

    # --- operations

    def embed_tokens(self, ids_BT: np.ndarray, table_VD: Any, scale: float) -> Estimate:
        table, is_quantized = dense(table_VD, self.dtype), isinstance(table_VD, QuantizedMatrix)
        value = embedding.embed_tokens(ids_BT, table, scale)
        times = 0 if scale == 1 else 2  # the product is rounded, and the scale may be
        errors = rounding_errors(self.arithmetic, value, times + is_quantized)
        settings = {"ids": ids_BT, "table": table, "scale": scale, "matrix": table_VD if is_quantized else None}
        return Estimate(self._rng, value, value, errors, origin=Origin("embed_tokens", (), settings, lambda: value))

    def add_positions(self, x_BTD: Any, start: int) -> Estimate:  # type: ignore[override]
        _, T, D = x_BTD.shape
        positions_TD = embedding.sinusoidal_positions(start, T, D)

        def errors(x: np.ndarray, y: np.ndarray) -> Errors:
            return error_bounds.position_errors(self.arithmetic, positions_TD, y, start + T - 1)

        return self._apply("add_positions", lambda x: x + positions_TD, errors, self.exact(x_BTD), start=start)

    def layer_norm(self, x_BTD: Any, weight_D: np.ndarray, bias_D: np.ndarray, eps: float) -> Estimate:  # type: ignore[override]
        def golden(x: np.ndarray) -> np.ndarray:
            return normalization.layer_norm(x, weight_D, bias_D, eps)

        def errors(x: np.ndarray, y: np.ndarray) -> Errors:
            return error_bounds.layer_norm_errors(self.arithmetic, x, weight_D, bias_D, eps, y)

        settings = {"weight": weight_D, "bias": bias_D, "eps": eps}
        return self._apply("layer_norm", golden, errors, self.exact(x_BTD), **settings)

    def linear(self, x: Any, weight: Any, bias: np.ndarray | None = None) -> Estimate:
        # The numbers of a quantized matrix, code times scale, may be rounded to the candidate's precision.
        matrix = weight if isinstance(weight, QuantizedMatrix) else None
        weight, rounded = dense(weight, self.dtype), int(matrix is not None)

        def golden(x: np.ndarray) -> np.ndarray:
            return feed_forward.linear(x, weight, bias)

        def errors(x: np.ndarray, y: np.ndarray) -> Errors:
            if bias is None:
                return error_bounds.product_errors(self.arithmetic, x, weight.T, y, rounded)
            # The bias may be the first term of the sum, or be added to the rounded sum of the other terms.
            terms = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
            found = error_bounds.product_errors(self.arithmetic, terms, np.vstack([weight.T, bias]), y, rounded)
            return found.plus(rounding_errors(self.arithmetic, y - bias))

        return self._apply("linear", golden, errors, self.exact(x), weight=weight, bias=bias, matrix=matrix)

    linear_full_precision = linear

    def activation(self, x: Any, name: str) -> Estimate:  # type: ignore[override]
        def errors(x: np.ndarray, y: np.ndarray) -> Errors:
            return error_bounds.activation_errors(self.arithmetic, name, x, y)

        return self._apply("activation", lambda x: feed_forward.activation(x, name), errors, self.exact(x), name=name)

    def add(self, x: Any, y: Any) -> Estimate:  # type: ignore[override]
        def errors(x: np.ndarray, y: np.ndarray, total: np.ndarray) -> Errors:
            return rounding_errors(self.arithmetic, total)

        return self._apply("add", np.add, errors, self.exact(x), self.exact(y))

    def attention(  # type: ignore[override]
        self, q_BHLF: Any, k_BHXF: Any, v_BHXF: Any, visible: np.ndarray | None = None, num_apart: int = 0
    ) -> Estimate:
        scale = q_BHLF.shape[3] ** -0.5
        rounded = 0 if error_bounds.is_power_of_two(scale) else 1

        def scores_of(q: np.ndarray, k: np.ndarray) -> np.ndarray:
            scores = (q * scale) @ k.swapaxes(2, 3)
            return scores if visible is None else np.where(visible[:, None], scores, LOWEST)

        def score_errors(q: np.ndarray, k: np.ndarray, scores: np.ndarray) -> Errors:
            seen = np.where(scores == LOWEST, 0.0, scores)
            return error_bounds.product_errors(self.arithmetic, q * scale, k.swapaxes(2, 3), seen, rounded, 1 + rounded)

        def prob_errors(scores: np.ndarray, probs: np.ndarray) -> Errors:
            return error_bounds.softmax_errors(self.arithmetic, scores, probs)

        def context_errors(probs: np.ndarray, v: np.ndarray, context: np.ndarray) -> Errors:
            found = error_bounds.product_errors(self.arithmetic, probs, v, context)
            if not num_apart:
                return found
            # The sums over global tokens and over tokens may be computed apart, rounded, and then added.
            of_globals = probs[..., :num_apart] @ v[:, :, :num_apart]
            of_tokens = rounding_errors(self.arithmetic, context - of_globals)
            return found.plus(rounding_errors(self.arithmetic, of_globals).plus(of_tokens))

        scores = tap("scores", self._apply("scores", scores_of, score_errors, q_BHLF, k_BHXF, visible=visible))
        probs = tap("probs", self._apply("softmax", softmax, prob_errors, scores))
        found: Estimate = tap("context", self._apply("weighted_sum", np.matmul, context_errors, probs, v_BHXF))
        return found

    def global_local_attention(  # type: ignore[override]
        self,
        q_BHTF: Any,
        k_BHTF: Any,
        v_BHTF: Any,
        global_q_BHGF: Any,
        global_k_BHGF: Any,
        global_v_BHGF: Any,
        key_mask_BT: np.ndarray | None,
        blocks: Blocks,
    ) -> tuple[Estimate, Estimate]:
        golden_k, num_globals = global_k_BHGF.value, global_k_BHGF.shape[2]
        contexts = []
        for n, (start, stop) in enumerate(blocks):
            keys = concatenate([global_k_BHGF, k_BHTF[:, :, start:stop]], axis=2)
            values = concatenate([global_v_BHGF, v_BHTF[:, :, start:stop]], axis=2)
            block_mask_BS = None if key_mask_BT is None else key_mask_BT[:, start:stop]
            with scope(f"local.{n}"):
                visible = see_globals(block_mask_BS, golden_k)
                contexts.append(self.attention(q_BHTF[:, :, start:stop], keys, values, visible, num_globals))
        keys, values = concatenate([global_k_BHGF, k_BHTF], axis=2), concatenate([global_v_BHGF, v_BHTF], axis=2)
        with scope("global"):
            found = self.attention(global_q_BHGF, keys, values, see_globals(key_mask_BT, golden_k), num_globals)
        return concatenate(contexts, axis=2), found

    def log_softmax(self, logits: Any) -> np.ndarray:
        return head.log_softmax(self.to_numpy(logits))

    def cross_entropy(self, logits_BLV: Any, labels_BL: np.ndarray) -> np.ndarray:
        return head.cross_entropy(self.to_numpy(logits_BLV), labels_BL)


def within_sublayer(operation: str, inputs: tuple[Estimate, ...]) -> tuple[Estimate, ...]:
    """Detach inputs of an operation from what lies before their sublayer, so that memory does not grow with depth."""
    if operation == "add":
        stream, update = inputs
        return stream.detach(), update
    if operation == "layer_norm" and (origin := inputs[0].origin) is not None:
        detached = inputs[0].detach()
        detached.origin = origin._replace(inputs=tuple(x.detach() for x in origin.inputs))
        return (detached,)
    return inputs
