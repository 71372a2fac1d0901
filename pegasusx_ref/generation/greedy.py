"""Greedy decoding: always the most probable next token. [spec 12]"""

from collections.abc import Callable

import numpy as np

from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.scores import forbid_early_end, force_end

NextLogits = Callable[[np.ndarray], np.ndarray]


def greedy_search(next_logits: NextLogits, batch_size: int, config: GenerationConfig) -> np.ndarray:
    """Decode a batch of texts token by token until each has ended or reached the greatest length. [spec 12.4]

    Logits are compared in float32, and among equal ones the lowest id wins, as in HF. A row that has ended is filled
    with the padding id until the longest row ends.

    Args:
        next_logits: takes the newest ids (B, 1), gives the logits of the ids that follow (B, V); it remembers the ids
            before.
        batch_size: B.
        config: start, end and padding ids, and the length limits.

    Returns:
        int64 ids (B, L), the start token first.

    Source: HF `GenerationMixin._sample` with do_sample=False.
    """
    min_length, max_length = config.lengths()
    eos_ids, forced_eos_ids = config.eos_token_ids, config.forced_eos_token_ids
    ids_BL = np.full((batch_size, 1), config.decoder_start_token_id, dtype=np.int64)
    ended_B = np.zeros(batch_size, dtype=bool)

    while ids_BL.shape[1] < max_length and not ended_B.all():
        scores_BV = next_logits(ids_BL[:, -1:]).astype(np.float32)
        scores_BV = forbid_early_end(scores_BV, ids_BL.shape[1], min_length, eos_ids)
        scores_BV = force_end(scores_BV, ids_BL.shape[1], max_length, forced_eos_ids)
        chosen_B = np.where(ended_B, config.pad_token_id, scores_BV.argmax(axis=1))
        ids_BL = np.concatenate([ids_BL, chosen_B[:, None]], axis=1)
        ended_B = ended_B | np.isin(chosen_B, eos_ids)
    return ids_BL
