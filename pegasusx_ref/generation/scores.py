"""What changes the scores of the next token before one is chosen. [spec 12]"""

from collections.abc import Sequence

import numpy as np


def forbid_early_end(scores_BV: np.ndarray, length: int, min_length: int, eos_token_ids: Sequence[int]) -> np.ndarray:
    """Rule out the end of a text that is still too short. [spec 12.2]

    Args:
        scores_BV: logits or log-probabilities of the next token (B, V).
        length: tokens so far, the start token counted in.
        min_length: tokens at the least, the start token counted in.
        eos_token_ids: the ids that end a text.

    Returns:
        The scores, with -inf for the ending tokens while length < min_length.

    Source: HF `MinLengthLogitsProcessor`.
    """
    if length >= min_length:
        return scores_BV
    scores_BV = scores_BV.copy()
    scores_BV[:, list(eos_token_ids)] = -np.inf
    return scores_BV


def force_end(scores_BV: np.ndarray, length: int, max_length: int, forced_eos_ids: Sequence[int]) -> np.ndarray:
    """Make the last token that fits an ending one, whatever the model says and however short the text is. [spec 12.3]

    Args:
        scores_BV: logits or log-probabilities of the next token (B, V).
        length: tokens so far, the start token counted in.
        max_length: tokens at the most, the start token counted in.
        forced_eos_ids: the ids to force, none to force nothing.

    Returns:
        The scores; where length = max_length - 1, 0 for the forced ids and -inf for all others.

    Source: HF `ForcedEOSTokenLogitsProcessor`.
    """
    if length != max_length - 1 or not forced_eos_ids:
        return scores_BV
    scores_BV = np.full_like(scores_BV, -np.inf)
    scores_BV[:, list(forced_eos_ids)] = 0
    return scores_BV
