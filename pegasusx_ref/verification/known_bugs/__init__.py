"""Known bugs: for each operation, what it returns with each of the bugs that people make. [spec 16]"""

from collections.abc import Callable

from pegasusx_ref.verification.known_bugs.attention_bugs import scores_bugs, softmax_bugs, weighted_sum_bugs
from pegasusx_ref.verification.known_bugs.embedding_bugs import add_positions_bugs, embed_tokens_bugs, pass_on_bugs
from pegasusx_ref.verification.known_bugs.failed_operation import FailedOperation, LayerContext, Variants
from pegasusx_ref.verification.known_bugs.position_wise_bugs import (
    activation_bugs,
    add_bugs,
    fitted_linear_bugs,
    layer_norm_bugs,
    linear_bugs,
)
from pegasusx_ref.verification.known_bugs.quantization_bugs import rounding_variance

KNOWN_BUGS: dict[str, Callable[[FailedOperation], Variants]] = {
    "embed_tokens": embed_tokens_bugs,
    "add_positions": add_positions_bugs,
    "pass on": pass_on_bugs,
    "layer_norm": layer_norm_bugs,
    "linear": linear_bugs,
    "activation": activation_bugs,
    "add": add_bugs,
    "scores": scores_bugs,
    "softmax": softmax_bugs,
    "weighted_sum": weighted_sum_bugs,
}

__all__ = ["KNOWN_BUGS", "FailedOperation", "LayerContext", "Variants", "fitted_linear_bugs", "rounding_variance"]
