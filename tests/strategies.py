"""Hypothesis strategies: configurations, sources, targets, operations; edge cases are drawn often."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from pegasusx_ref import PegasusXConfig
from pegasusx_ref.golden.feed_forward import ACTIVATIONS
from pegasusx_ref.golden.global_local import block_bounds

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


class Operation(NamedTuple):
    """One call of a backend's operation: arrays in float64, integers, booleans, and plain values."""

    name: str
    arguments: dict[str, Any]


@st.composite
def operations(draw: st.DrawFn, name: str) -> Operation:
    """Draw arguments for an operation, of the shapes that the model gives it."""
    rng = np.random.default_rng(draw(seeds))
    B, T, D = draw(st.integers(1, 3)), draw(st.integers(1, 20)), 2 * draw(st.integers(2, 8))
    H, F, X, G = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 4))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    def heads(length: int) -> np.ndarray:
        """Heads as the model cuts them out of a projection: not contiguous."""
        return normal(B, length, H, F).swapaxes(1, 2)

    match name:
        case "embed_tokens":
            ids = rng.integers(0, 30, (B, T))
            arguments = {"ids_BT": ids, "table_VD": normal(30, D), "scale": draw(st.sampled_from([1.0, 27.7]))}
        case "add_positions":
            arguments = {"x_BTD": normal(B, T, D), "start": draw(st.sampled_from([0, 1, 511, 16000]))}
        case "layer_norm":
            spread, offset = draw(st.sampled_from([1e-3, 1.0, 3e3])), draw(st.sampled_from([0.0, 3.0]))
            x = (normal(B, T, D) + offset) * spread
            arguments = {"x_BTD": x, "weight_D": normal(D), "bias_D": normal(D), "eps": 1e-5}
        case "linear" | "linear_full_precision":
            arguments = {
                "x": normal(B, T, D),
                "weight": normal(X, D),
                "bias": normal(X) if draw(st.booleans()) else None,
            }
        case "activation":
            arguments = {"x": 3 * normal(B, T, D), "name": draw(st.sampled_from(sorted(ACTIVATIONS)))}
        case "add":
            arguments = {"x": normal(B, T, D), "y": normal(B, T, D)}
        case "attention":
            L = draw(st.sampled_from([1, 2, 5, 33, 40]))
            visible = None
            if draw(st.booleans()):
                shape = (draw(st.sampled_from([1, B])), draw(st.sampled_from([1, L])), X)
                visible = rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9]))
            arguments = {"q_BHLF": heads(L), "k_BHXF": heads(X), "v_BHXF": heads(X), "visible": visible}
        case "global_local_attention":
            block_size = 2 * draw(st.integers(1, 4))
            T = draw(st.one_of(lengths(block_size), st.integers(9 * block_size, 12 * block_size)))
            mask = draw(masks(B, T))
            arguments = {name: heads(T) for name in ("q_BHTF", "k_BHTF", "v_BHTF")}
            arguments |= {f"global_{name}_BHGF": heads(G) for name in "qkv"}
            arguments["key_mask_BT"] = None if mask is None else mask.astype(bool)
            arguments["blocks"] = block_bounds(T, block_size, draw(st.booleans()))
        case "log_softmax":
            arguments = {"logits": draw(st.sampled_from([1.0, 30.0])) * normal(B, T, X)}
        case "cross_entropy":
            labels = rng.integers(0, X, (B, T))
            labels[rng.random((B, T)) < 0.3] = -100
            labels[0, 0] = rng.integers(0, X)
            arguments = {"logits_BLV": 3 * normal(B, T, X), "labels_BL": labels}
        case "to_float32":
            arguments = {"array": normal(B, T, D)}
        case "stable_top_k":
            arguments = {"scores": normal(B, draw(st.integers(1, 2000))).round(draw(st.integers(0, 3)))}
            arguments["count"] = draw(st.integers(1, 20))
        case _:
            raise AssertionError(f"no strategy for the operation {name}")
    return Operation(name, arguments)
