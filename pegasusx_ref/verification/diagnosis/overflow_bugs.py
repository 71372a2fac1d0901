"""A softmax that does not subtract the maximum of its row: large scores overflow. [spec 16]"""

import math

import numpy as np

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.diagnosis.attention_bugs import LocatedAttention
from pegasusx_ref.verification.verdicts import Failure

OVERFLOW = "softmax does not subtract the maximum: exp overflows"
NEAR = 0.01  # the share of a limit by which a score may miss it


def overflow(located: LocatedAttention, failure: Failure, arithmetic: Arithmetic) -> str | None:
    """Return a diagnosis where exactly those rows are not finite that have a score whose exponential overflows."""
    if located.until == "scores":
        return None
    is_finite = np.isfinite(failure.candidate).all(axis=-1)
    if is_finite[failure.valid].all():
        return None
    largest = located.largest_scores()
    if largest.ndim > is_finite.ndim:  # the heads are merged
        largest = largest.max(axis=1)
    for name in dict.fromkeys((arithmetic.dtype, "float32")):
        limit = math.log(float(np.finfo(numpy_dtype(name)).max if name != "bfloat16" else np.finfo(np.float32).max))
        counts = failure.valid & (np.abs(largest - limit) > NEAR * limit)
        if (is_finite == (largest < limit))[counts].all() and (~is_finite)[counts].any():
            return OVERFLOW
    return None
