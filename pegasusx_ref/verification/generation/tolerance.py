"""By how much the logits of a candidate may differ from the exact ones. [spec 16]"""

from collections.abc import Sequence

import numpy as np

from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tracing import record
from pegasusx_ref.verification.checking.arithmetics import FLOAT32, Arithmetic
from pegasusx_ref.verification.checking.operations import CheckingOperations
from pegasusx_ref.verification.generation.reference import Prefix, Reference
from pegasusx_ref.verification.verifier import tensors_on_host

DEVIATIONS = 4.0  # standard deviations of the rounding error by which the logits may be moved
MAX_TOKENS = 32  # of a text whose errors are computed: those of later tokens are about as large


def logit_errors(reference: Reference, prefixes: Sequence[Prefix], arithmetic: Arithmetic) -> list[float]:
    """Compute for each source by how much rounding may change the logits of a text.

    The errors of all operations are propagated to the logits, as in `verify` where no tensor is shown; the largest
    standard deviation of a source counts. Scores are compared in float32, whose rounding is added.

    Args:
        reference: the model and its sources.
        prefixes: of each source, the start token and tokens of a text.
        arithmetic: what the candidate computes in.
    """
    L = min(max(map(len, prefixes)), MAX_TOKENS)
    ids_BL = np.array([[*prefix, *[0] * L][:L] for prefix in prefixes])
    model = reference.model
    checking = PegasusXForConditionalGeneration(model.config, tensors_on_host(model), CheckingOperations(arithmetic))
    with record("lm_head") as trace:
        checking(reference.source_ids, reference.mask_BT, ids_BL)
    deviations_BL = np.sqrt(trace["lm_head"].variance.max(axis=2))
    sizes_BL = np.abs(trace["lm_head"].value).max(axis=2)
    is_text_BL = np.arange(L) < np.array([[len(prefix)] for prefix in prefixes])
    errors_BL = np.where(is_text_BL, DEVIATIONS * deviations_BL + FLOAT32 * (8 + 2 * sizes_BL), 0.0)
    return [float(error) for error in errors_BL.max(axis=1)]
