"""The golden operations on estimates: each computes its result and the rounding error that it may have. [spec 16]"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pegasusx_ref.backend import GoldenBackend, QuantizedMatrix
from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden import embedding, feed_forward, global_local, head, normalization
from pegasusx_ref.golden.attention import softmax
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing import tap
from pegasusx_ref.verification.checking import error_bounds, propagation
from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.error_bounds import THIRD, Errors, rounding_errors
from pegasusx_ref.verification.checking.estimate import Estimate, Origin, first_doubt
from pegasusx_ref.verification.checking.propagation import Variance

LOWEST = np.finfo(np.float64).min  # a masked score of the golden functions
SUMS = ("add", "add_positions")  # operations that pass on the bounds of their inputs
HIDDEN = -1e3  # a candidate's masked score is at most this: some masks add -10000, float16's lowest number is -65504


class CheckingOperations(GoldenBackend):
    """The golden operations in float64, each with the errors of the candidate's arithmetic. [spec 16.9]

    Args:
        arithmetic: what the candidate computes in.
    """

    name = "verification"

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__("cpu", "float64")
        self.arithmetic = arithmetic

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return the value."""
        return array.value if isinstance(array, Estimate) else array

    def exact(self, array: Any) -> Estimate:
        """Wrap an array that has no error."""
        return array if isinstance(array, Estimate) else Estimate(array, array)

    def _apply(
        self,
        operation: str,
        golden: Callable[..., np.ndarray],
        errors: Callable[..., Errors],
        inherited: Callable[..., np.ndarray],
        *inputs: Estimate,
        **settings: Any,
    ) -> Estimate:
        """Run an operation on the candidate's tensors and on the clean ones.

        Args:
            operation: its name.
            golden: computes the result from the inputs.
            errors: computes the operation's own errors in an arithmetic, from the inputs and the result.
            inherited: computes the variance that the result inherits, from the result and the variances of the inputs'
                errors (None where one is exact); called unless all are exact.
            inputs: of the operation.
            settings: its other arguments.
        """
        values = [x.value for x in inputs]
        value = golden(*values)
        clean = value if all(x.value is x.clean for x in inputs) else golden(*(x.clean for x in inputs))

        def own_errors(arithmetic: Arithmetic) -> Errors:
            found = errors(arithmetic, *values, value)
            # The golden result is rounded too, which matters only where the candidate computes in float64.
            return found.plus(found) if arithmetic.dtype == "float64" else found

        origin = Origin(operation, within_sublayer(operation, inputs), settings, golden, own_errors)
        found = own_errors(self.arithmetic)
        if is_direct := all(x.is_known for x in inputs):
            return Estimate(value, clean, found, is_direct, origin)
        variance = inherited(value, *(None if x.is_known else x.variance for x in inputs))
        bound = sum(x.allowed().bound for x in inputs) if operation in SUMS else np.inf
        return Estimate(value, clean, found.inheriting(variance, bound), is_direct, origin, (), first_doubt(inputs))

    # --- operations

    def embed_tokens(self, ids_BT: np.ndarray, table_VD: Any, scale: float) -> Estimate:
        table, is_quantized = dense(table_VD, self.dtype), isinstance(table_VD, QuantizedMatrix)
        value = embedding.embed_tokens(ids_BT, table, scale)

        def errors(a: Arithmetic) -> Errors:
            # The product is rounded, and the scale may be.
            return rounding_errors(a.of_residual(), value, (0 if scale == 1 else 2) + is_quantized + bool(a.parameters))

        settings = {"ids": ids_BT, "table": table, "scale": scale, "matrix": table_VD if is_quantized else None}
        origin = Origin("embed_tokens", (), settings, lambda: value, errors)
        return Estimate(value, value, errors(self.arithmetic), origin=origin)

    def add_positions(self, x_BTD: Any, start: int) -> Estimate:  # type: ignore[override]
        _, T, D = x_BTD.shape
        positions_TD = embedding.sinusoidal_positions(start, T, D)

        def errors(a: Arithmetic, x: np.ndarray, y: np.ndarray) -> Errors:
            return error_bounds.position_errors(a.of_residual(), positions_TD, y, start + T - 1)

        x = self.exact(x_BTD)
        return self._apply("add_positions", lambda x: x + positions_TD, errors, lambda _, of_x: of_x, x, start=start)

    def layer_norm(self, x_BTD: Any, weight_D: np.ndarray, bias_D: np.ndarray, eps: float) -> Estimate:  # type: ignore[override]
        def golden(x: np.ndarray) -> np.ndarray:
            return normalization.layer_norm(x, weight_D, bias_D, eps)

        def errors(a: Arithmetic, x: np.ndarray, y: np.ndarray) -> Errors:
            return error_bounds.layer_norm_errors(a, x, weight_D, bias_D, eps, y)

        x, settings = self.exact(x_BTD), {"weight": weight_D, "bias": bias_D, "eps": eps}

        def inherited(_: np.ndarray, of_x: np.ndarray) -> np.ndarray:
            return propagation.through_layer_norm(x.value, weight_D, eps, of_x)

        return self._apply("layer_norm", golden, errors, inherited, x, **settings)

    def linear_full_precision(self, x: Any, weight: Any, bias: np.ndarray | None = None) -> Estimate:
        return self.linear(x, weight, bias, is_residual=True)

    def linear(self, x: Any, weight: Any, bias: np.ndarray | None = None, is_residual: bool = False) -> Estimate:
        # The numbers of a quantized matrix, code times scale, may be rounded to the candidate's precision.
        matrix = weight if isinstance(weight, QuantizedMatrix) else None
        weight, x = dense(weight, self.dtype), self.exact(x)

        def golden(x: np.ndarray) -> np.ndarray:
            return feed_forward.linear(x, weight, bias)

        def errors(a: Arithmetic, x: np.ndarray, y: np.ndarray) -> Errors:
            rounded, a = (matrix is not None) + bool(a.parameters), a.of_residual() if is_residual else a
            return error_bounds.product_errors(a, x, weight.T, y, rounded, bias=bias)

        def inherited(_: np.ndarray, of_x: np.ndarray) -> np.ndarray:
            return propagation.through_product(x.value, weight.T, of_x, None)

        return self._apply("linear", golden, errors, inherited, x, weight=weight, bias=bias, matrix=matrix)

    def activation(self, x: Any, name: str) -> Estimate:  # type: ignore[override]
        def errors(a: Arithmetic, x: np.ndarray, y: np.ndarray) -> Errors:
            return error_bounds.activation_errors(a, name, x, y)

        def inherited(_: np.ndarray, of_x: np.ndarray) -> np.ndarray:
            return propagation.through_activation(name, known.value, of_x)

        known = self.exact(x)
        return self._apply(
            "activation", lambda x: feed_forward.activation(x, name), errors, inherited, known, name=name
        )

    def add(self, x: Any, y: Any) -> Estimate:  # type: ignore[override]
        def errors(a: Arithmetic, x: np.ndarray, y: np.ndarray, total: np.ndarray) -> Errors:
            return rounding_errors(a.of_residual(), total)

        def inherited(_: np.ndarray, *variances: np.ndarray | None) -> np.ndarray:
            return sum((variance for variance in variances if variance is not None), np.zeros(()))

        return self._apply("add", np.add, errors, inherited, self.exact(x), self.exact(y))

    def attention(  # type: ignore[override]
        self, q_BHLF: Any, k_BHXF: Any, v_BHXF: Any, visible: np.ndarray | None = None, num_apart: int = 0
    ) -> Estimate:
        scale = q_BHLF.shape[3] ** -0.5
        rounded = 0 if error_bounds.is_power_of_two(scale) else 1

        def scores_of(q: np.ndarray, k: np.ndarray) -> np.ndarray:
            scores = (q * scale) @ k.swapaxes(2, 3)
            return scores if visible is None else np.where(visible[:, None], scores, LOWEST)

        def score_errors(a: Arithmetic, q: np.ndarray, k: np.ndarray, scores: np.ndarray) -> Errors:
            seen = np.where(scores == LOWEST, 0.0, scores)
            return error_bounds.product_errors(a, q * scale, k.swapaxes(2, 3), seen, rounded, 1 + rounded)

        def context_errors(a: Arithmetic, probs: np.ndarray, v: np.ndarray, context: np.ndarray) -> Errors:
            found = error_bounds.product_errors(a, probs, v, context)
            if not num_apart:
                return found
            # The sums over global tokens and over tokens may be computed apart, rounded, and then added.
            of_globals = probs[..., :num_apart] @ v[:, :, :num_apart]
            of_tokens = rounding_errors(a, context - of_globals)
            return found.plus(rounding_errors(a, of_globals).plus(of_tokens))

        from_queries = np.zeros(())  # the variance that scores have from hidden queries

        def score_variance(scores: np.ndarray, of_q: Variance, of_k: Variance) -> np.ndarray:
            nonlocal from_queries
            q, k, seen = q_BHLF.value * scale, k_BHXF.value.swapaxes(2, 3) * scale, scores != LOWEST
            if of_q is not None:
                from_queries = seen * propagation.through_product(q, k, of_q, None)
            of_k = None if of_k is None else of_k.swapaxes(2, 3)
            found: np.ndarray = from_queries + seen * propagation.through_product(q, k, None, of_k)
            return found

        def prob_variance(probs: np.ndarray, of_scores: np.ndarray) -> np.ndarray:
            return propagation.through_softmax(scores.value, probs, of_scores)

        def context_variance(context: np.ndarray, of_probs: Variance, of_v: Variance) -> np.ndarray:
            p, v, a = probs.value, v_BHXF.value, self.arithmetic
            found: np.ndarray = np.zeros(context.shape) + propagation.through_product(p, v, None, of_v)
            if of_probs is None:
                return found
            depth, of_scores = error_bounds.depths(scores.value, p), scores.variance
            p = propagation.softened(scores.value, p, of_scores)
            if not scores.is_known and from_queries.ndim:
                found = found + propagation.through_queries(p, k_BHXF.value, v, context, from_queries)
                of_scores = of_scores - from_queries
            of_scores = of_scores + error_bounds.exponential_variance(a, depth)
            of_softmax = THIRD * (a.result**2 * (p**2 @ (v * v)) + a.softmax**2 * depth.shape[-1] / 3 * context**2)
            found += of_softmax
            found += propagation.through_attention(p, v, context, of_scores)
            return found

        scores = self._apply("scores", scores_of, score_errors, score_variance, q_BHLF, k_BHXF, visible=visible)
        scores = tap("scores", scores)
        probs = tap("probs", self._apply("softmax", softmax, error_bounds.softmax_errors, prob_variance, scores))
        context = self._apply("weighted_sum", np.matmul, context_errors, context_variance, probs, v_BHXF)
        found: Estimate = tap("context", context)
        return found

    def global_local_attention(
        self,
        q_BHTF: Any,
        k_BHTF: Any,
        v_BHTF: Any,
        global_q_BHGF: Any,
        global_k_BHGF: Any,
        global_v_BHGF: Any,
        key_mask_BT: np.ndarray | None,
        blocks: Blocks,
    ) -> tuple[Any, Any]:
        attend = partial(self.attention, num_apart=global_k_BHGF.shape[2])
        return global_local.global_local_attention(
            q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF, key_mask_BT, blocks, attend
        )

    def log_softmax(self, logits: Any) -> np.ndarray:
        return head.log_softmax(self.to_numpy(logits))

    def cross_entropy(self, logits_BLV: Any, labels_BL: np.ndarray, label_smoothing: float = 0.0) -> np.ndarray:
        return head.cross_entropy(self.to_numpy(logits_BLV), labels_BL, label_smoothing)


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
