"""The cases of the vectors: a table of small models and inputs, and the flags of their special properties."""

from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.golden.head import IGNORED_LABEL
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import is_staggered, layer_blocks
from pegasusx_ref.verification.vectors.deterministic_values import draw_ids

FLAX_EPS = 1e-12  # in the paper's code [N1]
# A case lists only what differs.
BASE: dict[str, Any] = {
    "vocab_size": 24, "d_model": 8, "block_size": 4, "num_global_tokens": 2, "activation_function": "relu",
    "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 12,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 10,
}  # fmt: skip


class Span(NamedTuple):
    """Tokens [start, stop) of a batch row."""

    row: int
    start: int
    stop: int


class Case(NamedTuple):
    """The model and input of a vector, and the rows to keep.

    Attributes:
        about: what it tests, in a few words.
        config: the settings that differ from `BASE`.
        batch: B.
        source_tokens: T.
        target_tokens: L.
        masked: padding of the source.
        target_masked: padding of the target.
        rows: source tokens whose rows are kept; None keeps all.
        has_gradients: whether gradients are kept too.
    """

    about: str
    config: dict[str, Any]
    batch: int = 2
    source_tokens: int = 13
    target_tokens: int = 4
    masked: tuple[Span, ...] = ()
    target_masked: tuple[Span, ...] = ()
    rows: tuple[int, ...] | None = None
    has_gradients: bool = False


# Of 16,384 tokens in blocks of 64: both sides of block edges in even layers (64 n) and staggered ones (32 + 64 n).
ROWS_OF_LONG = (0, 1, 31, 32, 63, 64, 4063, 4064, 4095, 4096, 4097, 4127, 4128, 8191, 8192, 16351, 16352, 16382, 16383)

CASES: dict[str, Case] = {
    "staggered": Case(
        "three encoder layers, the second one staggered; padding in source and target",
        {"encoder_layers": 3, "decoder_layers": 2},
        masked=(Span(1, 9, 13),),
        target_masked=(Span(1, 3, 4),),
    ),
    "whole-blocks": Case(
        "T is a multiple of K; three features a head, so the scale of the scores is no power of two",
        {"d_model": 12, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
        source_tokens=12,
    ),
    "not-staggered": Case(
        "no staggering, odd blocks, heads of encoder and decoder differ",
        {"stagger_local_blocks": False, "block_size": 5, "decoder_attention_heads": 1},
        masked=(Span(1, 12, 13),),
    ),
    "less-than-a-block": Case("T < K", {"block_size": 8}, source_tokens=7, masked=(Span(0, 6, 7),), has_gradients=True),
    "one-token": Case("T = 1 and L = 1", {}, source_tokens=1, target_tokens=1, has_gradients=True),
    "masked-block": Case(
        "a block of an even and one of a staggered layer without a real token, and a hole",
        {},
        masked=(Span(0, 2, 8), Span(1, 5, 6)),
        has_gradients=True,
    ),
    "masked-row": Case(
        "a batch row without a real token; a masked start of a target",
        {},
        batch=3,
        source_tokens=9,
        masked=(Span(1, 0, 9), Span(2, 7, 9)),
        target_masked=(Span(2, 0, 1),),
    ),
    "one-global": Case(
        "one global token; more decoder than encoder layers",
        {"num_global_tokens": 1, "encoder_layers": 1, "decoder_layers": 2},
        source_tokens=10,
    ),
    "unscaled": Case(
        "embeddings that are not scaled, and four tables instead of one; gelu in its tanh form",
        {"scale_embedding": False, "tie_word_embeddings": False, "activation_function": "gelu_new"},
    ),
    "gelu": Case("gelu with the error function", {"activation_function": "gelu"}, masked=(Span(0, 11, 13),)),
    "flax": Case(
        "the paper's code: eps of 1e-12 and gelu in its tanh form",
        {"layer_norm_eps": FLAX_EPS, "activation_function": "gelu_new"},
        masked=(Span(1, 10, 13),),
    ),
    "long": Case(
        "16,384 tokens with a hole among them, of which 19 are kept",
        {"d_model": 6, "block_size": 64, "encoder_attention_heads": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8},
        batch=1,
        source_tokens=16384,
        target_tokens=3,
        masked=(Span(0, 4097, 4120),),
        rows=ROWS_OF_LONG,
    ),
}


def case_config(case: Case) -> PegasusXConfig:
    """Build the configuration of a case."""
    return PegasusXConfig(**(BASE | case.config))


def case_inputs(case: Case, label: str) -> dict[str, Any]:
    """Draw the ids of a case and build its masks.

    Args:
        case: the case.
        label: the input of the hash.

    Returns:
        int64 input_ids (B, T) and decoder_input_ids (B, L), the start token first; bool attention_mask (B, T) and
        decoder_attention_mask (B, L), True where a token is real.
    """
    config, T, L = case_config(case), case.source_tokens, case.target_tokens
    target_ids = draw_ids(config, f"{label}/decoder_input_ids", (case.batch, L))
    target_ids[:, 0] = config.decoder_start_token_id
    return {
        "input_ids": draw_ids(config, f"{label}/input_ids", (case.batch, T)),
        "attention_mask": mask_without(case.masked, (case.batch, T)),
        "decoder_input_ids": target_ids,
        "decoder_attention_mask": mask_without(case.target_masked, (case.batch, L)),
    }


def case_labels(case: Case, label: str) -> np.ndarray:
    """Draw labels (B, L); the first text's last one is -100 if it has another.

    Args:
        case: the case.
        label: the input of the hash.
    """
    labels = draw_ids(case_config(case), f"{label}/labels", (case.batch, case.target_tokens))
    labels[0, 1:][-1:] = IGNORED_LABEL
    return labels


def mask_without(spans: tuple[Span, ...], shape: tuple[int, int]) -> np.ndarray:
    """Build a mask that is True outside the spans."""
    mask = np.ones(shape, dtype=bool)
    for row, start, stop in spans:
        mask[row, start:stop] = False
    return mask


def all_blocks(config: PegasusXConfig, num_tokens: int) -> list[Blocks]:
    """List the blocks of every encoder layer."""
    return [layer_blocks(config, num_tokens, layer) for layer in range(config.encoder_layers)]


def case_flags(config: PegasusXConfig, inputs: dict[str, np.ndarray], is_sampled: bool) -> list[str]:
    """Compute the flags of a model and its input.

    Args:
        config: the model's configuration.
        inputs: ids and masks from `case_inputs`.
        is_sampled: whether only some rows are kept.
    """
    mask_BT = inputs["attention_mask"]
    T, K = mask_BT.shape[1], config.block_size
    blocks = {block for layer in all_blocks(config, T) for block in layer}
    some_real = mask_BT[mask_BT.any(axis=1)]
    found = {
        "stagger": any(is_staggered(config, layer) for layer in range(config.encoder_layers)),
        "T%K==0": T % K == 0,
        "T<K": T < K,
        "T==1": T == 1,
        "G==1": config.num_global_tokens == 1,
        "fully-masked-block": any((~some_real[:, start:stop]).all(axis=1).any() for start, stop in blocks),
        "fully-masked-row": not mask_BT.any(axis=1).all(),
        "position>4096": T > 4097,
        "unscaled-embedding": not config.scale_embedding,
        "untied-embedding": not config.tie_word_embeddings,
        "row-sampled": is_sampled,
        "variant:flax": config.layer_norm_eps == FLAX_EPS,
        "variant:hf": config.layer_norm_eps != FLAX_EPS,
    }
    return [flag for flag, is_set in found.items() if is_set]
