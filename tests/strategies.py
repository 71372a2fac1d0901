"""Hypothesis strategies: configurations, sources and targets, with the awkward sizes drawn often."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from pegasusx_ref import PegasusXConfig
from pegasusx_ref.feed_forward import ACTIVATIONS

seeds = st.integers(0, 2**32 - 1)


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@st.composite
def configs(draw: st.DrawFn, /, **fixed: Any) -> PegasusXConfig:
    """Small models of every kind: stagger on and off, G=1, different encoder and decoder, tied and untied."""
    d_model = draw(st.sampled_from([4, 6, 8, 12, 16, 24]))
    stagger = draw(st.booleans())
    block_size = draw(st.integers(1, 10))
    values: dict[str, Any] = {
        "vocab_size": draw(st.integers(5, 40)),
        "d_model": d_model,
        "encoder_layers": draw(st.integers(0, 3)),
        "decoder_layers": draw(st.integers(0, 3)),
        "encoder_attention_heads": draw(st.sampled_from(divisors(d_model))),
        "decoder_attention_heads": draw(st.sampled_from(divisors(d_model))),
        "encoder_ffn_dim": draw(st.integers(1, 20)),
        "decoder_ffn_dim": draw(st.integers(1, 20)),
        "num_global_tokens": draw(st.integers(1, 5)),
        "block_size": 2 * block_size if stagger else block_size,
        "stagger_local_blocks": stagger,
        "activation_function": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "layer_norm_eps": draw(st.sampled_from([1e-5, 1e-5, 1e-12, 1e-3])),
        "scale_embedding": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "init_std": draw(st.sampled_from([0.02, 0.2, 0.5])),
    }
    return PegasusXConfig(**(values | fixed))


@st.composite
def lengths(draw: st.DrawFn, block_size: int) -> int:
    """T: shorter than a block, whole blocks, one token, and anything else."""
    blocks = draw(st.integers(1, 3))
    return draw(
        st.one_of(
            st.just(1),
            st.just(blocks * block_size),
            st.integers(1, block_size),
            st.integers(1, 4 * block_size),
        )
    )


class Batch(NamedTuple):
    """A source, its mask, and a target."""

    input_ids: np.ndarray
    attention_mask: np.ndarray | None
    decoder_input_ids: np.ndarray


@st.composite
def masks(draw: st.DrawFn, batch: int, length: int) -> np.ndarray | None:
    """No mask, texts of mixed lengths, holes anywhere, and rows that are masked as a whole."""
    kind = draw(st.sampled_from(["none", "lengths", "holes", "empty row"]))
    if kind == "none":
        return None
    rng = np.random.default_rng(draw(seeds))
    if kind == "holes":
        return rng.integers(0, 2, (batch, length))
    mask = (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.int64)
    if kind == "empty row":
        mask[rng.integers(batch)] = 0
    return mask


@st.composite
def batches(draw: st.DrawFn, config: PegasusXConfig) -> Batch:
    B, T, L = draw(st.integers(1, 3)), draw(lengths(config.block_size)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(seeds))
    return Batch(
        rng.integers(0, config.vocab_size, (B, T)),
        draw(masks(B, T)),
        rng.integers(0, config.vocab_size, (B, L)),
    )
