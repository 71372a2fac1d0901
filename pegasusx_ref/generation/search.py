"""From settings to ids: the logits processors, in order, and the kind of search. [spec 12]"""

from functools import partial

import numpy as np

from pegasusx_ref.backend import Backend
from pegasusx_ref.generation.beam_search import beam_search
from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.history import NextLogits
from pegasusx_ref.generation.logits_processors import (
    GOLDEN,
    Processor,
    forbid_early_end,
    forbid_repeated_ngrams,
    force_end,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    scale_temperature,
)
from pegasusx_ref.generation.sampling import greedy, sampler, token_search
from pegasusx_ref.generation.streamer import Streamer


def processors_for(config: GenerationConfig, source_ids: np.ndarray | None, ops: Backend = GOLDEN) -> list[Processor]:
    """List the logits processors that the settings require, in the order of transformers. [spec 12.13]

    Args:
        config: the settings.
        source_ids: the source of each row (N, T), for encoder_no_repeat_ngram_size.
        ops: the backend of the scores.

    Source: HF `GenerationMixin._get_logits_processor`.
    """
    min_length, max_length = config.lengths()
    size, source_size = config.no_repeat_ngram_size, config.encoder_no_repeat_ngram_size
    processors: list[Processor] = []
    if config.repetition_penalty != 1:
        processors.append(partial(penalize_repetition, penalty=config.repetition_penalty, ops=ops))
    if size:
        processors.append(partial(forbid_repeated_ngrams, size=size, ops=ops))
    if source_size:
        processors.append(partial(forbid_repeated_ngrams, size=source_size, sources=source_ids, ops=ops))
    processors.append(partial(forbid_early_end, min_length=min_length, eos_token_ids=config.eos_token_ids))
    processors.append(partial(force_end, max_length=max_length, forced_eos_ids=config.forced_eos_token_ids))
    if config.do_sample:
        processors.append(lambda ids, scores: scale_temperature(scores, config.temperature))
        if config.top_k:
            processors.append(lambda ids, scores: keep_top_k(scores, config.top_k))
        if config.top_p < 1:
            processors.append(lambda ids, scores: keep_top_p(scores, config.top_p))
    return processors


@np.errstate(over="ignore", invalid="ignore")  # each step checks its logits, on every backend
def search(
    next_logits: NextLogits,
    batch_size: int,
    config: GenerationConfig,
    source_ids: np.ndarray | None = None,
    seed: int | None = None,
    streamer: Streamer | None = None,
    ops: Backend = GOLDEN,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Generate texts according to the settings. [spec 12.14]

    In greedy and beam search the scores stay on the device; sampling runs on the host.

    Args:
        next_logits: the model.
        batch_size: B.
        config: the settings.
        source_ids: (B, T), required for encoder_no_repeat_ngram_size.
        seed: of the random generator for sampling; None for a different one each time.
        streamer: receives the tokens as they are chosen; without beams only.
        ops: the backend of the logits; the golden one for NumPy arrays.

    Returns:
        int64 ids (B R, L), the start token first, and the scores (B R,) of beam search, otherwise None.

    Raises:
        NumericsError: logits that are not finite; the message names the first such token and its row.
    """
    rows = config.num_beams if config.num_beams > 1 else config.num_return_sequences
    per_row = None if source_ids is None else np.repeat(source_ids, rows, axis=0)
    if config.do_sample:
        choose, processors = sampler(np.random.default_rng(seed)), processors_for(config, per_row)
        return token_search(on_host(next_logits, ops), processors, batch_size, config, choose, streamer), None
    processors = processors_for(config, per_row, ops)
    if config.num_beams > 1:
        return beam_search(next_logits, processors, batch_size, config, ops)
    return token_search(next_logits, processors, batch_size, config, greedy, streamer, ops), None


def on_host(next_logits: NextLogits, ops: Backend) -> NextLogits:
    """Copy the logits of every step to the host.

    Args:
        next_logits: the model.
        ops: its backend.
    """
    return lambda ids_BL, visible: ops.to_numpy(next_logits(ids_BL, visible))
