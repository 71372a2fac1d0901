"""Attention probabilities of one layer for one text, recorded from a run, and their averages by word."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.tracing import record

WORD_START = "▁"  # sentencepiece puts it before a piece that begins a word


def local_attention_probs(
    model: PegasusXForConditionalGeneration, input_ids: Any, layer: int
) -> tuple[list[np.ndarray], Blocks]:
    """Run the encoder on one text and record the local attention of one layer.

    Args:
        model: on a backend that computes probabilities on request.
        input_ids: of one text (1, T), without padding.
        layer: of the encoder, from 0.

    Returns:
        Probabilities (H, S, G+S) for each block, and the blocks.

    Raises:
        InputError: there is no such layer, or the model cannot process the ids.
    """
    check_layer(layer, model.config.encoder_layers, "encoder")
    place = f"encoder.layers.{layer}.self_attn.local"
    with record(f"{place}.*.probs") as trace:
        model.encode(input_ids)
    num_tokens = np.shape(input_ids)[1]
    blocks = layer_blocks(model.config, num_tokens, layer)
    return [model.ops.to_numpy(trace[f"{place}.{n}.probs"])[0] for n in range(len(blocks))], blocks


def cross_attention_probs(
    model: PegasusXForConditionalGeneration, input_ids: Any, target_ids: Any, layer: int, head: int | None = None
) -> np.ndarray:
    """Run the model on one text and its summary and record the cross-attention of one layer.

    Args:
        model: on a backend that computes probabilities on request.
        input_ids: of one text (1, T), without padding.
        target_ids: the summary, with the start token first (1, L + 1), as `generate` returns it.
        layer: of the decoder, from 0.
        head: index of a head; None: the mean of all heads.

    Returns:
        Probabilities (L, T): row l belongs to the decode step that chose token l + 1.

    Raises:
        InputError: there is no such layer or head, or the model cannot process the ids.
    """
    check_layer(layer, model.config.decoder_layers, "decoder")
    check_head(head, model.config.decoder_attention_heads)
    with record(f"decoder.layers.{layer}.encoder_attn.probs") as trace:
        model(input_ids, decoder_input_ids=np.asarray(target_ids)[:, :-1])
    (probs,) = trace.values()
    return select_head(model.ops.to_numpy(probs)[0], head)


def average_by_word(probs: np.ndarray, tokens: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Average the rows of the tokens that form a word; a special token such as ``</s>`` is a word of its own.

    Args:
        probs: a row for each token (tokens, keys).
        tokens: their names, from `PegasusTokenizer.convert_ids_to_tokens`.

    Returns:
        A row for each word (words, keys), and the words.

    Raises:
        InputError: the numbers of rows and tokens differ, or there is no token.
    """
    if not tokens or len(probs) != len(tokens):
        raise InputError(f"{len(probs)} rows for {len(tokens)} tokens: each of at least one token needs a row")
    is_special = [token.startswith("<") and token.endswith(">") for token in tokens]
    first = [
        i
        for i, token in enumerate(tokens)
        if not i or token.startswith(WORD_START) or is_special[i] or is_special[i - 1]
    ]
    ends = [*first[1:], len(tokens)]
    words = ["".join(tokens[a:b]).replace(WORD_START, " ").strip() for a, b in zip(first, ends, strict=True)]
    means: np.ndarray = np.add.reduceat(probs, first, axis=0) / np.subtract(ends, first)[:, None]
    return means, words


def select_head(probs: np.ndarray, head: int | None) -> np.ndarray:
    """Return the probabilities of one head, or the mean of all heads for None, from an array with heads first."""
    selected: np.ndarray = probs.mean(axis=0) if head is None else probs[head]
    return selected


def check_layer(layer: int, num_layers: int, stack: str) -> None:
    """Raise `InputError` if the encoder or decoder has no such layer."""
    if not 0 <= layer < num_layers:
        raise InputError(f"layer={layer} does not exist: the {stack}'s layers are 0 to {num_layers - 1}")


def check_head(head: int | None, num_heads: int) -> None:
    """Raise `InputError` if there is no such head; None means all heads."""
    if head is not None and not 0 <= head < num_heads:
        raise InputError(f"head={head} does not exist: heads are 0 to {num_heads - 1}")
