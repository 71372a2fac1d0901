"""From settings to ids: the logits processors, in order, and the kind of search. [spec 12]"""

from functools import partial

import numpy as np

from pegasusx_ref.backend import Backend
from pegasusx_ref.generation.beam_search import ChooseCandidates, beam_search
from pegasusx_ref.generation.callbacks import Callbacks, processor_of_caller
from pegasusx_ref.generation.config import GenerationConfig, as_list
from pegasusx_ref.generation.history import NextLogits
from pegasusx_ref.generation.logits_processors import (
    GOLDEN,
    Processor,
    forbid_early_end,
    forbid_repeated_ngrams,
    force_end,
    force_start,
    penalize_repetition,
    raise_end,
    renormalize,
)
from pegasusx_ref.generation.running import Keep
from pegasusx_ref.generation.sampling import Choose, candidate_sampler, greedy, sampler, token_search
from pegasusx_ref.generation.search_record import SearchRecord
from pegasusx_ref.generation.stopping import Criterion, criterion_of_caller, stop_strings, time_limit
from pegasusx_ref.generation.streamer import Streamer
from pegasusx_ref.generation.token_constraints import allow_only, forbid_words, grouped_words, suppress_tokens
from pegasusx_ref.generation.warpers import keep_top_k, keep_top_p, scale_temperature

NO_CALLBACKS = Callbacks()


def processors_for(
    config: GenerationConfig,
    source_ids: np.ndarray | None,
    ops: Backend = GOLDEN,
    callbacks: Callbacks = NO_CALLBACKS,
    device: Backend | None = None,
) -> list[Processor]:
    """List the logits processors that the settings require, in the order of transformers. [spec 12.13]

    Args:
        config: the settings.
        source_ids: the source of each row (N, T), for encoder_no_repeat_ngram_size.
        ops: the backend of the scores.
        callbacks: the caller's own processors.
        device: the model's backend, whose arrays these get, if it is not that of the scores.

    Source: HF `GenerationMixin._get_logits_processor`.
    """
    min_length, max_length = config.lengths()
    ends = config.eos_token_ids
    size, source_size = config.no_repeat_ngram_size, config.encoder_no_repeat_ngram_size
    processors: list[Processor] = []
    if config.repetition_penalty != 1:
        processors.append(partial(penalize_repetition, penalty=config.repetition_penalty, ops=ops))
    if size:
        processors.append(partial(forbid_repeated_ngrams, size=size, ops=ops))
    if source_size:
        processors.append(partial(forbid_repeated_ngrams, size=source_size, sources=source_ids, ops=ops))
    if config.bad_words_ids:
        processors.append(partial(forbid_words, groups=grouped_words(config.bad_words_ids, ends), ops=ops))
    processors.append(partial(forbid_early_end, min_length=min_length, eos_token_ids=ends))
    if (allowed := callbacks.prefix_allowed_tokens_fn) is not None:
        processors.append(partial(allow_only, allowed=allowed, beams=config.num_beams, ops=ops))
    if (first := config.forced_bos_token_id) is not None:
        processors.append(partial(force_start, token_id=first))
    processors.append(partial(force_end, max_length=max_length, forced_eos_ids=config.forced_eos_token_ids))
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        processors.append(partial(raise_end, start=int(start), factor=factor, eos_token_ids=ends))
    for tokens, length in (
        (config.suppress_tokens, None),
        (config.begin_suppress_tokens, 1 if first is None else 2),
    ):
        if tokens:
            on_device = ops.asarray(np.array(as_list(tokens)))
            processors.append(partial(suppress_tokens, tokens=on_device, length=length))
    processors += [processor_of_caller(function, device or ops, ops) for function in callbacks.logits_processor]
    if config.do_sample:
        at_least = 1 if config.num_beams == 1 else max(2, 1 + len(ends))  # a beam needs a token that does not end it
        processors.append(lambda ids, scores: scale_temperature(scores, config.temperature))
        if config.top_k:
            processors.append(lambda ids, scores: keep_top_k(scores, config.top_k, at_least))
        if config.top_p < 1:
            processors.append(lambda ids, scores: keep_top_p(scores, config.top_p, at_least))
    if config.renormalize_logits:
        processors.append(partial(renormalize, ops=ops))
    return processors


def criteria_for(config: GenerationConfig, callbacks: Callbacks, ops: Backend) -> list[Criterion]:
    """List what ends a text besides end tokens and the maximum length; the time of max_time starts now. [spec 12.24]

    Args:
        config: the settings.
        callbacks: the caller's own criteria, and the tokenizer for stop_strings.
        ops: the model's backend, whose arrays the caller's criteria get.

    Source: HF `GenerationMixin._get_stopping_criteria`.
    """
    criteria: list[Criterion] = []
    if config.max_time is not None:
        criteria.append(time_limit(config.max_time))
    if strings := as_list(config.stop_strings):
        criteria.append(stop_strings(strings, callbacks.tokenizer))
    return criteria + [criterion_of_caller(function, ops) for function in callbacks.stopping_criteria]


@np.errstate(over="ignore", invalid="ignore")  # each step checks its logits, on every backend
def search(
    next_logits: NextLogits,
    batch_size: int,
    config: GenerationConfig,
    source_ids: np.ndarray | None = None,
    seed: int | None = None,
    streamer: Streamer | None = None,
    ops: Backend = GOLDEN,
    callbacks: Callbacks = NO_CALLBACKS,
    record: SearchRecord | None = None,
    keep: Keep | None = None,
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
        callbacks: functions of the caller.
        record: receives the scores of the tokens.
        keep: lets the model go on with some sources only; see `RunningModel`.

    Returns:
        int64 ids (B R, L), the start token first, and the scores (B R,) of beam search, otherwise None.

    Raises:
        NumericsError: logits that are not finite; the message names the first such token and its row.
    """
    rows = config.num_beams if config.num_beams > 1 else config.num_return_sequences
    per_row = None if source_ids is None else np.repeat(source_ids, rows, axis=0)
    criteria = criteria_for(config, callbacks, ops)
    processors = processors_for(config, per_row, GOLDEN if config.do_sample else ops, callbacks, ops)
    counts_on_rows = callbacks.logits_processor or callbacks.prefix_allowed_tokens_fn or record
    if config.do_sample or config.encoder_no_repeat_ngram_size or counts_on_rows:
        keep = None  # these need the rows of all sources at every step
    token: Choose = greedy
    candidates: ChooseCandidates | None = None
    if config.do_sample:
        generator = np.random.default_rng(seed)
        token, candidates = sampler(generator), candidate_sampler(generator)
        next_logits, ops = on_host(next_logits, ops), GOLDEN
    if config.num_beams > 1:
        return beam_search(next_logits, processors, batch_size, config, ops, candidates, criteria, record, keep)
    return token_search(next_logits, processors, batch_size, config, token, streamer, ops, criteria, record, keep), None


def on_host(next_logits: NextLogits, ops: Backend) -> NextLogits:
    """Copy the logits of every step to the host.

    Args:
        next_logits: the model.
        ops: its backend.
    """
    return lambda ids_BL, visible: ops.to_numpy(next_logits(ids_BL, visible))
