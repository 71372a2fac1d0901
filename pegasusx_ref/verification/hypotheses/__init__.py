"""Mistakes that people make: for each, what the operation would give with it. [spec 16]"""

from collections.abc import Callable

from pegasusx_ref.verification.hypotheses.attention import of_scores, of_softmax, of_weighted_sum
from pegasusx_ref.verification.hypotheses.case import Case, Surroundings, Variants
from pegasusx_ref.verification.hypotheses.embeddings import of_add_positions, of_embed_tokens, of_what_is_passed_on
from pegasusx_ref.verification.hypotheses.position_wise import of_activation, of_add, of_layer_norm, of_linear

HYPOTHESES: dict[str, Callable[[Case], Variants]] = {
    "embed_tokens": of_embed_tokens,
    "add_positions": of_add_positions,
    "pass on": of_what_is_passed_on,
    "layer_norm": of_layer_norm,
    "linear": of_linear,
    "activation": of_activation,
    "add": of_add,
    "scores": of_scores,
    "softmax": of_softmax,
    "weighted_sum": of_weighted_sum,
}

__all__ = ["HYPOTHESES", "Case", "Surroundings", "Variants"]
