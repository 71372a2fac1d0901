"""Known bugs: for each operation, what it returns with each of the bugs that people make. [spec 16]"""

from collections.abc import Callable

from pegasusx_ref.verification.diagnosis.activation_bugs import activation_bugs
from pegasusx_ref.verification.diagnosis.attention_bugs import scores_bugs, softmax_bugs, weighted_sum_bugs
from pegasusx_ref.verification.diagnosis.embedding_bugs import add_positions_bugs, embed_tokens_bugs, pass_on_bugs
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.diagnosis.layer_norm_bugs import layer_norm_bugs
from pegasusx_ref.verification.diagnosis.linear_bugs import linear_bugs
from pegasusx_ref.verification.diagnosis.residual_bugs import add_bugs

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
