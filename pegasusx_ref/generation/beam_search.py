"""Beam search. [spec 12]"""

import numpy as np

from pegasusx_ref.backend import Backend
from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.finite_logits import FiniteLogits
from pegasusx_ref.generation.history import NextLogits, own_history, visible_history
from pegasusx_ref.generation.logits_processors import GOLDEN, Processor
from pegasusx_ref.golden.top_k import stable_top_k

NEVER = np.float32(-1e9)  # the score of excluded candidates, as in HF: finite, so that it can be compared


class Finished:
    """The best finished texts of each source, one slot a beam; an empty slot holds the start token alone.

    Args:
        batch_size: B.
        config: for the number of beams, the maximum length, the start token and the fill token.
    """

    def __init__(self, batch_size: int, config: GenerationConfig) -> None:
        places = (batch_size, config.num_beams)
        self.fill = config.fill_token_id
        self.ids = np.full((*places, config.lengths()[1]), self.fill, dtype=np.int64)
        self.ids[:, :, 0] = config.decoder_start_token_id
        self.lengths = np.ones(places, dtype=np.int64)
        self.scores = np.full(places, NEVER, dtype=np.float32)
        self.taken = np.zeros(places, dtype=bool)

    def offer(self, ids: np.ndarray, scores: np.ndarray, ended: np.ndarray) -> None:
        """Keep the best among the stored texts and the candidates.

        Args:
            ids: candidates (B, C, n), finished or not.
            scores: of the candidates (B, C), about -1e9 for those that must not be kept.
            ended: True for a candidate that is finished (B, C).
        """
        B, C, length = ids.shape
        padded = np.full((B, C, self.ids.shape[2]), self.fill, dtype=np.int64)
        padded[:, :, :length] = ids
        merged = np.concatenate([self.scores, scores], axis=1)
        rows = np.arange(B)[:, None]
        self.scores, best = stable_top_k(merged, self.scores.shape[1])
        self.ids = np.concatenate([self.ids, padded], axis=1)[rows, best]
        self.lengths = np.concatenate([self.lengths, np.full((B, C), length)], axis=1)[rows, best]
        self.taken = np.concatenate([self.taken, ended], axis=1)[rows, best]

    def results(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best `count` texts of each source (B count, L) and their scores (B count,)."""
        longest = self.lengths[:, :count].max()
        return self.ids[:, :count, :longest].reshape(-1, longest), self.scores[:, :count].reshape(-1)


def beam_search(
    next_logits: NextLogits,
    processors: list[Processor],
    batch_size: int,
    config: GenerationConfig,
    ops: Backend = GOLDEN,
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the most probable partial texts at each step, and return the best finished ones. [spec 12.11]

    At each step the best 2 x beams continuations are candidates (more with several end tokens). A candidate that ends
    and ranks among the first num_beams competes for a slot among the finished texts, by log-probability /
    length^length_penalty. The best candidates that do not end are the next beams. Scores are float32; among equal ones
    the earlier beam and the lower id win. The scores of all V tokens stay on the device, where this function may modify
    them; only the candidates are copied to the host.

    Args:
        next_logits: the model, as a function.
        processors: applied to the log-probabilities, which are not renormalized.
        batch_size: B.
        config: the number of beams and of results, length limits, penalty and stopping rule.
        ops: the backend of the logits.

    Returns:
        int64 ids (B R, L) of the best R texts of each source, the start token first; rows that end early are filled
        with the end token if the padding id is 0, as in HF. And their scores (B R,).

    Raises:
        NumericsError: logits that are not finite.

    Source: HF `GenerationMixin._beam_search`.
    """
    B, beams = batch_size, config.num_beams
    max_length, penalty = config.lengths()[1], config.length_penalty
    rows, num_candidates = np.arange(B)[:, None], max(2, 1 + len(config.eos_token_ids)) * beams

    ids = np.full((B, beams, 1), config.decoder_start_token_id, dtype=np.int64)
    scores = np.where(np.arange(beams) == 0, np.float32(0), NEVER)[None].repeat(B, axis=0)
    ancestors = np.zeros((B, beams, 0), dtype=np.int64)
    finished = Finished(B, config)
    logits_of = FiniteLogits(next_logits, ops)
    can_improve = np.ones((B, 1), dtype=bool)
    all_end = False

    while can_improve.any() and not all_end and not (config.early_stopping is True and finished.taken.all()):
        length = ids.shape[2]
        logits = logits_of(ids[:, :, -1], visible_history(ancestors))
        log_probs = ops.log_softmax(logits.reshape(B * beams, -1))
        for process in processors:
            log_probs = process(ids.reshape(B * beams, length), log_probs)
        log_probs += ops.to_float32(scores.reshape(B * beams, 1))
        totals, V = log_probs.reshape(B, -1), log_probs.shape[1]

        candidate_scores, best = map(ops.to_numpy, ops.stable_top_k(totals, num_candidates))
        logits_of.check(~can_improve)
        origins, tokens = best // V, best % V
        candidate_ids = np.concatenate([ids[rows, origins], tokens[:, :, None]], axis=2)
        ends = np.isin(tokens, config.eos_token_ids) | (length + 1 == max_length)
        all_end = bool(ends.all())

        # The next beams: the best candidates that do not end.
        running = candidate_scores + ends * NEVER
        scores, kept = stable_top_k(running, beams)
        ids = candidate_ids[rows, kept]
        ancestors = np.concatenate([ancestors, own_history(B, beams, 1)], axis=2)[rows, origins[rows, kept]]

        # Finished texts: candidates of the first ranks, for sources that can still improve.
        ends_well = ends & (np.arange(best.shape[1]) < beams)
        closed = finished.taken.all(axis=1, keepdims=True) & (config.early_stopping is True)
        final_scores = candidate_scores / np.float32(length**penalty)
        for excluded in (closed, ~can_improve, ~ends_well):
            final_scores = final_scores + excluded * NEVER
        finished.offer(candidate_ids, final_scores, ends_well)

        # Continue while the best running beam could still beat the worst finished text.
        reach = max_length - 1 if config.early_stopping == "never" and penalty > 0 else length
        attainable = scores[:, :1] / np.float32(reach**penalty)
        worst = np.where(finished.taken, finished.scores.min(axis=1, keepdims=True), NEVER)
        can_improve = can_improve & (attainable > worst).any(axis=1, keepdims=True)

    return finished.results(config.num_return_sequences)
