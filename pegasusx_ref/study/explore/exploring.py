"""One text's way through the model: the encoder once, the summary, and the decoder once more over what was written."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.head import log_softmax
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.study.explore.sampling import Counts, Sample, counts_that_fit
from pegasusx_ref.study.explore.watching import CrossWatch, EncoderWatch
from pegasusx_ref.summarization import SummarizationPipeline
from pegasusx_ref.tokenizer.tokenizer import UNKNOWN, PegasusTokenizer

NUM_CANDIDATES = 8


class Candidate(NamedTuple):
    """A token that the model might write."""

    token_id: int
    probability: float


@dataclass(frozen=True)
class Step:
    """A token of the summary.

    Attributes:
        chosen: the token.
        rank: how many tokens were likelier.
        candidates: the likeliest tokens, the best first.
    """

    chosen: Candidate
    rank: int
    candidates: list[Candidate]


@dataclass(frozen=True)
class Exploration:
    """What the page shows of one text.

    Attributes:
        config: of the model.
        token_ids: of the source.
        num_dropped: source tokens that were cut off.
        counts: how many keys are kept of a query.
        encoder: what tokens and global tokens attend to.
        steps: the summary, without the start token.
        cross: what each step attends to in the text.
    """

    config: PegasusXConfig
    token_ids: list[int]
    num_dropped: int
    counts: Counts
    encoder: EncoderWatch
    steps: list[Step]
    cross: Sample


def explored(
    summarizer: SummarizationPipeline,
    text: str,
    max_tokens: int | None = None,
    progress: AbstractContextManager[None] | None = None,
    **settings: Any,
) -> Exploration:
    """Summarize a text and keep what the page shows of it.

    The encoder runs once. The decoder runs to write the summary, by whatever search, and a second time over the tokens
    that were chosen: there every position is a step, with the probabilities that the model itself gives, before
    settings such as a least length change them.

    Args:
        summarizer: the model and its tokenizer.
        text: to be summarized.
        max_tokens: source tokens at the most; the model's length where None.
        progress: is entered while the summary is written.
        settings: of `generate`, where they are not to be the checkpoint's.

    Raises:
        InputError: a model without layers, or a text that does not fit on a page.
    """
    model, config = summarizer.model, summarizer.model.config
    if not (config.encoder_layers and config.decoder_layers):
        raise InputError("a model without encoder or decoder layers has no attention to explore")
    max_length = config.max_position_embeddings if max_tokens is None else max_tokens
    batch = summarizer.tokenizer([text], max_length=max_length, truncation=True, return_tensors="np")
    num_tokens = batch.input_ids.shape[1]
    _, longest = model.generation_config.updated(**settings).lengths()
    counts = counts_that_fit(config, num_tokens, longest - 1)

    encoder = EncoderWatch(config, num_tokens, counts)
    with progress or nullcontext(), encoder.listening():
        ids_BL = model.generate(**batch, **settings)[:1]
    cross = CrossWatch(config, num_tokens, ids_BL.shape[1] - 1, counts)
    with cross.listening():
        output = model(encoder_outputs=(encoder.last_hidden_state,), decoder_input_ids=ids_BL[:, :-1])
    return Exploration(
        config=config,
        token_ids=batch.input_ids[0].tolist(),
        num_dropped=batch.num_truncated_tokens[0],
        counts=counts,
        encoder=encoder,
        steps=[step(logits_V, int(chosen)) for logits_V, chosen in zip(output.logits[0], ids_BL[0, 1:], strict=True)],
        cross=cross.in_text,
    )


def step(logits_V: np.ndarray, chosen: int) -> Step:
    """Rank the vocabulary at one step.

    Args:
        logits_V: of the vocabulary.
        chosen: the token that was written.
    """
    probs_V = np.exp(log_softmax(logits_V))
    best = np.argsort(-logits_V, kind="stable")[:NUM_CANDIDATES]
    return Step(
        chosen=Candidate(chosen, float(probs_V[chosen])),
        rank=int((logits_V > logits_V[chosen]).sum()),
        candidates=[Candidate(int(token_id), float(probs_V[token_id])) for token_id in best],
    )


def readable(tokenizer: PegasusTokenizer, token_ids: list[int]) -> list[str]:
    """Name tokens as they are read: with a space where the tokenizer has "▁"."""
    return [piece.replace("▁", " ") for piece in tokenizer.convert_ids_to_tokens(token_ids)]


def is_special(token_id: int) -> bool:
    """Tell whether a token stands for no text of its own, such as `</s>` and `<unk>`."""
    return token_id <= UNKNOWN
