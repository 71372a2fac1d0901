"""The encoder: tokens and global tokens go through layers of block-local and global attention. [spec 9]"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.golden.global_local import Blocks, block_bounds
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.layers import feed_forward, normalize, project_heads, project_out
from pegasusx_ref.model.weights import Weights
from pegasusx_ref.tracing import scope, tap


class Encoded(NamedTuple):
    """A source after the encoder, on the device."""

    tokens_BTD: Array
    globals_BGD: Array | None  # None where the caller passed encoder outputs
    mask_BT: Array | None

    def keep(self, places: Array) -> "Encoded":
        """Copy some sources, given by their places in the batch."""
        tokens, glob, mask = (None if x is None else x[places] for x in self)
        return Encoded(tokens, glob, mask)


def encoder_self_attention(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    tokens_BTD: Array,
    globals_BGD: Array,
    key_mask_BT: Array | None,
    blocks: Blocks,
) -> tuple[Array, Array]:
    """Project both streams with the same four matrices and let them attend. [spec 9.1]

    Args:
        ops: the backend.
        weights: of one layer's ``self_attn``.
        config: for the number of heads.
        tokens_BTD: normalized tokens (B, T, D).
        globals_BGD: normalized global tokens (B, G, D).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        blocks: the layer's blocks.

    Returns:
        What attention adds to the tokens (B, T, D) and to the global tokens (B, G, D).

    Source: arXiv 2208.04347 section 3; HF `PegasusXGlobalLocalAttention.forward`.
    """
    H = config.encoder_attention_heads
    with scope("tokens"):
        q_BHTF = project_heads(ops, weights, "q_proj", H, tokens_BTD)
        k_BHTF = project_heads(ops, weights, "k_proj", H, tokens_BTD)
        v_BHTF = project_heads(ops, weights, "v_proj", H, tokens_BTD)
    with scope("globals"):
        q_BHGF = project_heads(ops, weights, "q_proj", H, globals_BGD)
        k_BHGF = project_heads(ops, weights, "k_proj", H, globals_BGD)
        v_BHGF = project_heads(ops, weights, "v_proj", H, globals_BGD)

    context_BHTF, context_BHGF = ops.global_local_attention(
        q_BHTF, k_BHTF, v_BHTF, q_BHGF, k_BHGF, v_BHGF, key_mask_BT, blocks
    )

    with scope("tokens"):
        update_BTD = project_out(ops, weights, context_BHTF)
    with scope("globals"):
        update_BGD = project_out(ops, weights, context_BHGF)
    return update_BTD, update_BGD


def encoder_layer(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    tokens_BTD: Array,
    globals_BGD: Array,
    key_mask_BT: Array | None,
    blocks: Blocks,
) -> tuple[Array, Array]:
    """Run one encoder layer: attention over both streams, then the feed-forward sublayer on each. [spec 9.2]

    Tokens and global tokens have separate LayerNorms before attention and share all other weights.

    Args:
        ops: the backend.
        weights: of this layer.
        config: the model's configuration.
        tokens_BTD: hidden states of the tokens (B, T, D).
        globals_BGD: hidden states of the global tokens (B, G, D).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        blocks: the layer's blocks.

    Returns:
        Both streams after the layer.

    Source: arXiv 2208.04347 section 3; HF `PegasusXEncoderLayer.forward`.
    """
    tokens_BTD = tap("tokens.input", tokens_BTD)
    globals_BGD = tap("globals.input", globals_BGD)

    normed_BTD = normalize(ops, weights, "self_attn_layer_norm", config, tokens_BTD)
    normed_BGD = normalize(ops, weights, "global_self_attn_layer_norm", config, globals_BGD)
    normed_BTD = tap("tokens.self_attn_layer_norm", normed_BTD)
    normed_BGD = tap("globals.self_attn_layer_norm", normed_BGD)

    with scope("self_attn"):
        update_BTD, update_BGD = encoder_self_attention(
            ops, weights.at("self_attn"), config, normed_BTD, normed_BGD, key_mask_BT, blocks
        )
    del normed_BTD, normed_BGD  # long inputs: frees memory for the feed-forward sublayer

    with scope("tokens"):
        tokens_BTD = tap("self_attn_residual", ops.add(tokens_BTD, update_BTD))
        tokens_BTD = feed_forward(ops, weights, config, tokens_BTD)
    with scope("globals"):
        globals_BGD = tap("self_attn_residual", ops.add(globals_BGD, update_BGD))
        globals_BGD = feed_forward(ops, weights, config, globals_BGD)
    return tokens_BTD, globals_BGD


def is_staggered(config: PegasusXConfig, layer: int) -> bool:
    """Return whether a layer's blocks are shifted by K/2: the odd layers 1, 3, 5, …. [spec 8.2]

    Args:
        config: for stagger_local_blocks.
        layer: the layer's index, from 0.
    """
    return config.stagger_local_blocks and layer % 2 == 1


def layer_blocks(config: PegasusXConfig, num_tokens: int, layer: int) -> Blocks:
    """List the blocks of one layer.

    Args:
        config: for block_size and stagger_local_blocks.
        num_tokens: T.
        layer: the layer's index, from 0.
    """
    return block_bounds(num_tokens, config.block_size, is_staggered(config, layer))


def encoder(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    tokens_BTD: Array,
    key_mask_BT: Array | None,
    layer: Callable[..., tuple[Array, Array]] = encoder_layer,
) -> tuple[Array, Array]:
    """Run the whole encoder: start the global tokens, run all layers, apply the last LayerNorm. [spec 9.3]

    Args:
        ops: the backend.
        weights: of the encoder.
        config: the model's configuration.
        tokens_BTD: scaled token embeddings with positions (B, T, D).
        key_mask_BT: True where a token is real (B, T); None means everywhere.
        layer: `encoder_layer`, or a function with its arguments: training recomputes it in the backward pass.

    Returns:
        The tokens after the last LayerNorm (B, T, D), which the decoder reads, and the global tokens without it
        (B, G, D).

    Source: HF `PegasusXEncoder.forward`.
    """
    B, T, _ = tokens_BTD.shape
    with scope("encoder"), ops.workspace():
        global_ids_BG = ops.asarray(np.tile(np.arange(config.num_global_tokens), (B, 1)))
        globals_BGD = tap("embed_global", ops.embed_tokens(global_ids_BG, weights["embed_global.weight"], scale=1.0))
        for i in range(config.encoder_layers):
            blocks = layer_blocks(config, T, i)
            with scope(f"layers.{i}"):
                tokens_BTD, globals_BGD = layer(
                    ops, weights.at(f"layers.{i}"), config, tokens_BTD, globals_BGD, key_mask_BT, blocks
                )
        return tap("layer_norm", normalize(ops, weights, "layer_norm", config, tokens_BTD)), globals_BGD
