"""Beam search. [spec 12]"""

from collections.abc import Callable, Sequence

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.history import NextLogits, own_history, visible_history
from pegasusx_ref.generation.logits_processors import GOLDEN, Processor
from pegasusx_ref.generation.running import Keep, RunningModel
from pegasusx_ref.generation.search_record import TOKEN_SCORES, SearchRecord
from pegasusx_ref.generation.stopping import Criterion
from pegasusx_ref.golden.top_k import stable_top_k

ChooseCandidates = Callable[[Array, int], tuple[Array, Array]]
NEVER = np.float32(-1e9)  # the score of excluded candidates, as in HF: finite, so that it can be compared


class Finished:
    """The best finished texts of each source, one slot a beam; an empty slot holds the start token alone.

    Args:
        start: tables by name (B, beams, 1): a number for each token of a text, and only the start token so far. Besides
            the ids there may be others, such as scores.
        fills: by name, what stands behind the end of a text.
        max_length: the maximum length.
    """

    def __init__(self, start: dict[str, np.ndarray], fills: dict[str, int], max_length: int) -> None:
        B, beams, _ = start["ids"].shape
        self.fills, self.max_length = fills, max_length
        self.tables = self._padded(start)
        self.lengths = np.ones((B, beams), dtype=np.int64)
        self.scores = np.full((B, beams), NEVER, dtype=np.float32)
        self.taken = np.zeros((B, beams), dtype=bool)

    def _padded(self, tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        padded = {}
        for name, table in tables.items():
            B, C, length = table.shape
            padded[name] = np.full((B, C, self.max_length), self.fills[name], dtype=table.dtype)
            padded[name][:, :, :length] = table
        return padded

    def offer(self, tables: dict[str, np.ndarray], scores: np.ndarray, ended: np.ndarray) -> None:
        """Keep the best among the stored texts and the candidates.

        Args:
            tables: of the candidates (B, C, n), finished or not.
            scores: of the candidates (B, C), about -1e9 for those that must not be kept.
            ended: True for a candidate that is finished (B, C).
        """
        B, C, length = tables["ids"].shape
        merged = np.concatenate([self.scores, scores], axis=1)
        rows = np.arange(B)[:, None]
        self.scores, best = stable_top_k(merged, self.scores.shape[1])
        for name, padded in self._padded(tables).items():
            self.tables[name] = np.concatenate([self.tables[name], padded], axis=1)[rows, best]
        self.lengths = np.concatenate([self.lengths, np.full((B, C), length)], axis=1)[rows, best]
        self.taken = np.concatenate([self.taken, ended], axis=1)[rows, best]

    def results(self, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the tables of the best `count` texts of each source (B count, L) and their scores (B count,)."""
        longest = self.lengths[:, :count].max()
        best = {name: table[:, :count, :longest].reshape(-1, longest) for name, table in self.tables.items()}
        return best, self.scores[:, :count].reshape(-1)


def beam_search(
    next_logits: NextLogits,
    processors: list[Processor],
    batch_size: int,
    config: GenerationConfig,
    ops: Backend = GOLDEN,
    choose: ChooseCandidates | None = None,
    criteria: Sequence[Criterion] = (),
    record: SearchRecord | None = None,
    keep: Keep | None = None,
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
        choose: from the scores of all continuations (B, beams V) and a number of candidates to the candidates' scores
            and columns, on the device; the best ones where None.
        criteria: end a text besides the end tokens.
        record: receives the scores of the tokens.
        keep: see `RunningModel`.

    Returns:
        int64 ids (B R, L) of the best R texts of each source, the start token first; rows that end early are filled
        with the end token if the padding id is 0, as in HF. And their scores (B R,).

    Raises:
        NumericsError: logits that are not finite.

    Source: HF `GenerationMixin._beam_search`.
    """
    B, beams = batch_size, config.num_beams
    max_length, penalty = config.lengths()[1], config.length_penalty
    ends_of_text = config.eos_token_ids
    rows, num_candidates = np.arange(B)[:, None], max(2, 1 + len(ends_of_text)) * beams

    ids = np.full((B, beams, 1), config.start_token_id, dtype=np.int64)
    tables, fills = {"ids": ids}, {"ids": config.fill_token_id}
    if record is not None:
        tables |= {"beam_indices": ids * 0 - 1, **dict.fromkeys(TOKEN_SCORES, np.zeros(ids.shape, dtype=np.float32))}
        fills |= {"beam_indices": -1, **dict.fromkeys(TOKEN_SCORES, 0)}
    scores = np.where(np.arange(beams) == 0, np.float32(0), NEVER)[None].repeat(B, axis=0)
    ancestors = np.zeros((B, beams, 0), dtype=np.int64)
    finished = Finished(tables, fills, max_length)
    model = RunningModel(next_logits, B, ops, keep)
    can_improve = np.ones((B, 1), dtype=bool)
    all_end = False

    while can_improve.any() and not all_end and not (config.early_stopping is True and finished.taken.all()):
        sources, length = model.sources, ids.shape[2]
        running_ids = ids[sources].reshape(-1, length)
        logits = model(ids[sources, :, -1], visible_history(ancestors[sources])).reshape(len(running_ids), -1)
        log_probs, V = ops.log_softmax(logits), logits.shape[1]
        for process in processors:
            log_probs = process(running_ids, log_probs)
        if record is not None:
            record.see_logits(logits, ops)
            record.see_scores(log_probs, ops)
        log_probs += ops.to_float32(scores[sources].reshape(-1, 1))

        chosen = (choose or ops.stable_top_k)(log_probs.reshape(len(sources), -1), num_candidates)
        candidate_scores, best = np.full((B, num_candidates), NEVER), np.zeros((B, num_candidates), dtype=np.int64)
        candidate_scores[sources], best[sources] = map(ops.to_numpy, chosen)
        model.check(~can_improve)
        origins, tokens = best // V, best % V
        newest = {"ids": tokens}
        if record is not None:
            newest |= {"beam_indices": beams * rows + origins, **record.of_tokens(beams * rows + origins, tokens, ops)}
        candidates = {
            name: np.concatenate([table[rows, origins], newest[name][:, :, None]], axis=2)
            for name, table in tables.items()
        }
        ends = np.isin(tokens, ends_of_text) | (length + 1 == max_length)
        for criterion in criteria:
            ends = ends | criterion(candidates["ids"].reshape(-1, length + 1)).reshape(ends.shape)
        all_end = bool(ends.all())

        # The next beams: the best candidates that do not end.
        running = candidate_scores + ends * NEVER
        scores, kept = stable_top_k(running, beams)
        tables = {name: table[rows, kept] for name, table in candidates.items()}
        ids = tables["ids"]
        ancestors = np.concatenate([ancestors, own_history(B, beams, 1)], axis=2)[rows, origins[rows, kept]]

        # Finished texts: candidates of the first ranks, for sources that can still improve.
        ends_well = ends & (np.arange(best.shape[1]) < beams)
        closed = finished.taken.all(axis=1, keepdims=True) & (config.early_stopping is True)
        final_scores = candidate_scores / np.float32(length**penalty)
        for excluded in (closed, ~can_improve, ~ends_well):
            final_scores = final_scores + excluded * NEVER
        finished.offer(candidates, final_scores, ends_well)

        # Continue while the best running beam could still beat the worst finished text.
        reach = max_length - 1 if config.early_stopping == "never" and penalty > 0 else length
        attainable = scores[:, :1] / np.float32(reach**penalty)
        worst = np.where(finished.taken, finished.scores.min(axis=1, keepdims=True), NEVER)
        can_improve = can_improve & (attainable > worst).any(axis=1, keepdims=True)
        model.leave(~can_improve[:, 0] | (finished.taken.all(axis=1) & (config.early_stopping is True)))

    best_tables, best_scores = finished.results(config.num_return_sequences)
    best_ids = best_tables.pop("ids")
    if record is not None:
        record.finish({name: table[:, 1:] for name, table in best_tables.items()})
    return best_ids, best_scores
