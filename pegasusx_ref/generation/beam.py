"""Beam search: the best few texts at a time, then the best of those that ended. [spec 12]"""

import numpy as np

from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.rows import NextLogits, visible_history
from pegasusx_ref.generation.scores import Processor
from pegasusx_ref.head import log_softmax

NEVER = np.float32(-1e9)  # the score of what must not be chosen, as in HF: it still compares


def beam_search(
    next_logits: NextLogits, processors: list[Processor], batch_size: int, config: GenerationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Follow the most probable few texts, and return the best that ended. [spec 12.11]

    At each step the best 2 x beams continuations are looked at (more with several end tokens). Those that end compete
    for a place among the finished ones, by log-probability / length^length_penalty, if they rank among the first
    beams; the best that do not end go on. Scores are float32; among equal ones the earlier beam and the lower id win.

    Args:
        next_logits: the model.
        processors: applied to log-probabilities, without normalizing them again.
        batch_size: B.
        config: the number of beams and of results, length limits, penalty and stopping rule.

    Returns:
        int64 ids (B R, L) of the best R texts of each source, the start token first; rows that end early are filled
        with the end token, as in HF, where padding is 0. And their scores (B R,).

    Source: HF `GenerationMixin._beam_search`.
    """
    B, beams = batch_size, config.num_beams
    _, max_length = config.lengths()
    eos_ids, penalty = config.eos_token_ids, config.length_penalty
    rows = np.arange(B)[:, None]
    num_candidates = max(2, 1 + len(eos_ids)) * beams

    running_ids = np.full((B, beams, 1), config.decoder_start_token_id, dtype=np.int64)
    running_scores = np.where(np.arange(beams) == 0, np.float32(0), NEVER)[None].repeat(B, axis=0)
    ancestors = np.zeros((B, beams, 0), dtype=np.int64)
    finished_ids = np.full((B, beams, max_length), config.fill_token_id, dtype=np.int64)
    finished_lengths = np.zeros((B, beams), dtype=np.int64)
    finished_scores = np.full((B, beams), NEVER, dtype=np.float32)
    finished = np.zeros((B, beams), dtype=bool)
    can_improve = np.ones((B, 1), dtype=bool)

    while True:
        length = running_ids.shape[2]
        logits = next_logits(running_ids[:, :, -1], visible_history(ancestors)).astype(np.float32)
        scores = log_softmax(logits.reshape(B * beams, -1))
        for process in processors:
            scores = process(running_ids.reshape(B * beams, length), scores)
        V = scores.shape[1]
        totals = (scores.reshape(B, beams, V) + running_scores[:, :, None]).reshape(B, beams * V)

        best = best_first(totals, num_candidates)
        candidate_scores = totals[rows, best]
        origins, tokens = best // V, best % V
        candidate_ids = np.concatenate([running_ids[rows, origins], tokens[:, :, None]], axis=2)
        ends = np.isin(tokens, eos_ids) | (length + 1 == max_length)

        # What goes on: the best that do not end.
        kept = best_first(candidate_scores + ends * NEVER, beams)
        running_ids = candidate_ids[rows, kept]
        running_scores = (candidate_scores + ends * NEVER)[rows, kept]
        parents = origins[rows, kept]
        own = np.broadcast_to(np.arange(beams)[None, :, None], (B, beams, 1))
        ancestors = np.concatenate([ancestors, own], axis=2)[rows, parents]

        # What has ended: the best of those from before and of the candidates of the first ranks that end now.
        ends_well = ends & (np.arange(num_candidates) < beams)
        closed = finished.all(axis=1, keepdims=True) & (config.early_stopping is True)
        final_scores = candidate_scores / np.float32(length**penalty)
        for excluded in (closed, ~can_improve, ~ends_well):
            final_scores = final_scores + excluded * NEVER
        padded_ids = np.full((B, num_candidates, max_length), config.fill_token_id, dtype=np.int64)
        padded_ids[:, :, : length + 1] = candidate_ids
        merged_scores = np.concatenate([finished_scores, final_scores], axis=1)
        places = best_first(merged_scores, beams)
        finished_scores = merged_scores[rows, places]
        finished_ids = np.concatenate([finished_ids, padded_ids], axis=1)[rows, places]
        candidate_lengths = np.full((B, num_candidates), length + 1)
        finished_lengths = np.concatenate([finished_lengths, candidate_lengths], axis=1)[rows, places]
        finished = np.concatenate([finished, ends_well], axis=1)[rows, places]

        # Whether to go on: could the best running text still beat the worst finished one?
        reach = max_length - 1 if config.early_stopping == "never" and penalty > 0 else length
        hope = running_scores[:, :1] / np.float32(reach**penalty)
        worst = np.where(finished, finished_scores.min(axis=1, keepdims=True), NEVER)
        can_improve = can_improve & (hope > worst).any(axis=1, keepdims=True)
        all_closed = finished.all() and config.early_stopping is True
        if not can_improve.any() or all_closed or ends.all():
            break

    R = config.num_return_sequences
    longest = finished_lengths[:, :R].max()
    return finished_ids[:, :R, :longest].reshape(B * R, -1), finished_scores[:, :R].reshape(-1)


def best_first(scores: np.ndarray, count: int) -> np.ndarray:
    """Give the columns of the best scores of each row, best first, the lower column first among equals.

    Args:
        scores: (B, n).
        count: how many, at most n.
    """
    count = min(count, scores.shape[1])
    threshold = np.partition(scores, -count, axis=1)[:, -count, None]
    chosen = []
    for row, limit in zip(scores, threshold, strict=True):
        columns = np.flatnonzero(row >= limit)  # few more than count: only ties are too many
        chosen.append(columns[np.argsort(-row[columns], kind="stable")[:count]])
    return np.stack(chosen)
