"""Greedy search and sampling: one token after another. [spec 12]"""

from collections.abc import Callable, Sequence

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.history import NextLogits, own_history, visible_history
from pegasusx_ref.generation.logits_processors import GOLDEN, Processor
from pegasusx_ref.generation.running import Keep, RunningModel
from pegasusx_ref.generation.search_record import SearchRecord
from pegasusx_ref.generation.stopping import Criterion
from pegasusx_ref.generation.streamer import Streamer
from pegasusx_ref.golden.attention import softmax
from pegasusx_ref.golden.top_k import stable_top_k

Choose = Callable[[Array], Array]


def greedy(scores: Array) -> Array:
    """Choose the most probable token of each row; among equals the lowest id.

    Args:
        scores: of the next token (N, V).

    Returns:
        Ids (N,), on the device.
    """
    return scores.argmax(-1)


def sampler(generator: np.random.Generator) -> Choose:
    """Return a function that samples each row's token from the softmax of its scores. [spec 12.12]

    Args:
        generator: the random generator; each row uses one uniform number per step.
    """

    def choose(scores: np.ndarray) -> np.ndarray:
        cumulative = np.cumsum(softmax(scores.astype(np.float64)), axis=1)
        thresholds = generator.random((len(scores), 1)) * cumulative[:, -1:]
        return (cumulative <= thresholds).sum(axis=1)

    return choose


def candidate_sampler(generator: np.random.Generator) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """Return a function that samples candidates without replacement from the softmax of their scores. [spec 12.26]

    The candidates with the largest scores plus Gumbel noise are such a sample, in the order in which they are drawn.

    Args:
        generator: the random generator; every score uses one number per step.

    Source: arXiv 1903.06059 section 2.3; HF `GenerationMixin._get_top_k_continuations`.
    """

    def choose(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        noisy = scores.astype(np.float64) - np.log(generator.exponential(size=scores.shape))
        _, columns = stable_top_k(noisy, count)
        return np.take_along_axis(scores, columns, axis=1), columns

    return choose


def token_search(
    next_logits: NextLogits,
    processors: list[Processor],
    batch_size: int,
    config: GenerationConfig,
    choose: Choose = greedy,
    streamer: Streamer | None = None,
    ops: Backend = GOLDEN,
    criteria: Sequence[Criterion] = (),
    record: SearchRecord | None = None,
    keep: Keep | None = None,
) -> np.ndarray:
    """Generate texts token by token until each has ended or reached the maximum length. [spec 12.4]

    Logits are compared in float32, as in HF. A row that has ended is filled with the padding id until all rows have
    ended.

    Args:
        next_logits: the model.
        processors: applied to the logits before a token is chosen.
        batch_size: B.
        config: start, end and padding ids, the length limits, and the number R of texts for each source.
        choose: from scores (N, V) to ids (N,), both on the device.
        streamer: receives the start tokens, then every step's tokens, including padding.
        ops: the backend of the logits.
        criteria: end a text besides the end tokens.
        record: receives the scores of the tokens.
        keep: see `RunningModel`.

    Returns:
        int64 ids (B R, L), the start token first.

    Raises:
        NumericsError: logits that are not finite.

    Source: HF `GenerationMixin._sample`.
    """
    B, R = batch_size, config.num_return_sequences
    _, max_length = config.lengths()
    ends_of_text, padding = config.eos_token_ids, config.padding_token_id
    ids = np.full((B * R, 1), config.start_token_id, dtype=np.int64)
    ended = np.zeros(B * R, dtype=bool)
    model = RunningModel(next_logits, B, ops, keep)
    steps: list[dict[str, np.ndarray]] = []
    if streamer is not None:
        streamer.put(ids[:, 0])

    while ids.shape[1] < max_length and not ended.all():
        running = (R * model.sources[:, None] + np.arange(R)).reshape(-1)  # rows
        newest = ids[running, -1].reshape(-1, R)
        visible = visible_history(own_history(len(newest), R, ids.shape[1] - 1))
        scores = model(newest, visible).reshape(len(running), -1)
        if record is not None:
            record.see_logits(scores, ops)
        for process in processors:
            scores = process(ids[running], scores)
        chosen = np.full(B * R, padding)
        chosen[running] = ops.to_numpy(choose(scores))
        chosen[ended] = padding
        model.check(ended.reshape(B, R))
        if record is not None:
            record.see_scores(scores, ops)
            steps.append(record.of_tokens(np.arange(B * R), chosen, ops))
        ids = np.concatenate([ids, chosen[:, None]], axis=1)
        ended = ended | np.isin(chosen, ends_of_text)
        for criterion in criteria:
            ended = ended | criterion(ids)
        model.leave(np.asarray(ended.reshape(B, R).all(axis=1)))
        if streamer is not None:
            streamer.put(chosen)
    if streamer is not None:
        streamer.end()
    if record is not None:
        record.finish({name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]})
    return ids
