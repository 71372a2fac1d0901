"""Scores of masked keys, which implementations write in different ways. [spec 16]"""

import numpy as np

from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.checking.operations import HIDDEN, LOWEST

NOT_MASKED = "masked keys have ordinary scores"
MASKED = "visible keys are masked"


def compare_masks(candidate: np.ndarray, estimate: Estimate, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Write masked keys in one way, and compare them.

    Args:
        candidate: the candidate's scores (..., X).
        estimate: the expected ones.
        valid: which rows count.

    Returns:
        The candidate's scores and the expected ones, with `LOWEST` for masked keys; and the problem, "" if there is
        none. Expected scores are NaN where a mask that is added cannot hide a number that is not finite.
    """
    right = estimate.value
    hidden = right == LOWEST
    if (inherits := hidden & ~np.isfinite(candidate) & (candidate != -np.inf)).any():
        right = np.where(inherits & from_earlier(estimate), np.nan, right)
        hidden = right == LOWEST
    candidate = np.where((candidate == -np.inf) | (hidden & (candidate <= HIDDEN)), LOWEST, candidate)
    if (candidate[hidden & valid[..., None]] != LOWEST).any():
        return candidate, right, NOT_MASKED
    is_masked = ((candidate <= HIDDEN) & (right > HIDDEN / 2))[valid].any()
    return candidate, right, MASKED if is_masked else ""


def from_earlier(estimate: Estimate) -> np.ndarray:
    """Return which scores are not finite without the mask: by query, key, or padding that saw the row's keys."""
    lost: np.ndarray = ~np.isfinite(estimate.value).all(axis=-1, keepdims=True)
    if estimate.origin is not None:
        q, k = (~np.isfinite(x.value).all(axis=-1) for x in estimate.origin.inputs)
        lost = lost | q[..., :, None] | k[..., None, :]
    return lost
