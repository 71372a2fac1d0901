"""The data of the page: attention of one encoder run, the summary, and the decoder's attention at every step."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError, printable
from pegasusx_ref.golden.head import log_softmax
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.study.explore.attention_listeners import EncoderAttentionListener, cross_attention_top_keys
from pegasusx_ref.study.explore.top_keys import KeyCounts, TopKeys, key_counts_that_fit
from pegasusx_ref.summarization import SummarizationPipeline
from pegasusx_ref.tokenizer import PegasusTokenizer
from pegasusx_ref.tokenizer.vocabulary import UNKNOWN

NUM_ALTERNATIVES = 8


class TokenProbability(NamedTuple):
    """A token and the probability that the model gives it at one step."""

    token_id: int
    probability: float


@dataclass(frozen=True)
class DecodeStep:
    """A token of the summary.

    Attributes:
        chosen: the token.
        rank: number of tokens with a higher probability.
        most_likely: the most likely tokens, the best first.
    """

    chosen: TokenProbability
    rank: int
    most_likely: list[TokenProbability]


@dataclass(frozen=True)
class Exploration:
    """The data of the page.

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
    counts: KeyCounts
    encoder: EncoderAttentionListener
    steps: list[DecodeStep]
    cross: TopKeys


def explore_text(
    summarizer: SummarizationPipeline,
    text: str,
    max_tokens: int | None = None,
    progress: AbstractContextManager[None] | None = None,
    **settings: Any,
) -> Exploration:
    """Summarize a text and keep the data of the page.

    The encoder runs once. The decoder runs twice: once to write the summary, with any search, and once over all chosen
    tokens. The second run gives the model's own probabilities at every step, before logits processors change them.

    Args:
        summarizer: the model and its tokenizer.
        text: to summarize.
        max_tokens: the most source tokens; None: the model's limit.
        progress: context manager that is entered while the summary is written.
        settings: of `generate`; the defaults are the checkpoint's.

    Raises:
        InputError: the model has no layers, or the text does not fit on a page.
    """
    model, config = summarizer.model, summarizer.model.config
    if not (config.encoder_layers and config.decoder_layers):
        raise InputError("a model without encoder or decoder layers has no attention to explore")
    max_length = config.max_position_embeddings if max_tokens is None else max_tokens
    batch = summarizer.tokenizer([text], max_length=max_length, truncation=True, return_tensors="np")
    num_tokens = batch.input_ids.shape[1]
    _, longest = model.generation_config.updated(**settings).lengths()
    counts = key_counts_that_fit(config, num_tokens, longest - 1)

    encoder = EncoderAttentionListener(config, num_tokens, counts)
    with progress or nullcontext(), encoder.listening():
        ids_BL = model.generate(**batch, **settings)[:1]
    with cross_attention_top_keys(config, num_tokens, ids_BL.shape[1] - 1, counts) as cross:
        output = model(encoder_outputs=(encoder.last_hidden_state,), decoder_input_ids=ids_BL[:, :-1])
    return Exploration(
        config=config,
        token_ids=batch.input_ids[0].tolist(),
        num_dropped=batch.num_truncated_tokens[0],
        counts=counts,
        encoder=encoder,
        steps=[ranked(logits_V, int(chosen)) for logits_V, chosen in zip(output.logits[0], ids_BL[0, 1:], strict=True)],
        cross=cross,
    )


def ranked(logits_V: np.ndarray, chosen: int) -> DecodeStep:
    """Rank the chosen token among the vocabulary.

    Args:
        logits_V: of the vocabulary.
        chosen: id of the chosen token.
    """
    probs_V = np.exp(log_softmax(logits_V))
    best = np.argsort(-logits_V, kind="stable")[:NUM_ALTERNATIVES]
    return DecodeStep(
        chosen=TokenProbability(chosen, float(probs_V[chosen])),
        rank=int((logits_V > logits_V[chosen]).sum()),
        most_likely=[TokenProbability(int(token_id), float(probs_V[token_id])) for token_id in best],
    )


def readable_tokens(tokenizer: PegasusTokenizer, token_ids: list[int]) -> list[str]:
    """Convert ids to pieces of text, with a space for sentencepiece's "▁"; control characters are escaped."""
    return [printable(piece.replace("▁", " ")) for piece in tokenizer.convert_ids_to_tokens(token_ids)]


def is_special(token_id: int) -> bool:
    """Return whether a token has no text of its own, such as `</s>` and `<unk>`."""
    return token_id <= UNKNOWN
