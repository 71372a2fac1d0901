"""Known bugs inside attention: scale, mask, heads, softmax, values. [spec 16]"""

import math

import numpy as np

from pegasusx_ref.golden.attention import merge_heads, softmax, split_heads
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.tracing.trace_points import numbers_in
from pegasusx_ref.verification.known_bugs.block_bugs import other_blocks
from pegasusx_ref.verification.known_bugs.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.operations import LOWEST


def scores_bugs(op: FailedOperation) -> Variants:
    """Compute scores with a wrong scale, mask, split into heads, or order of keys."""
    (q, k), visible = op.inputs, op.settings["visible"]
    _, H, L, F = q.shape
    right = (q * F**-0.5) @ k.swapaxes(2, 3)  # the golden order: without a bug, no bit differs

    def masked(scores: np.ndarray, seen: np.ndarray | None = visible) -> np.ndarray:
        return scores if seen is None else np.where(seen[:, None], scores, LOWEST)

    found: Variants = {
        "scores are not scaled": lambda: masked(q @ k.swapaxes(2, 3)),
        "scores are divided by sqrt(D), not by the root of the head width": lambda: masked(right / math.sqrt(H)),
        "the scale is applied twice: division by the head width, not by its root": lambda: masked(right / math.sqrt(F)),
        "keys are in the reverse order": lambda: masked(right[..., ::-1]),
        "queries and keys are split into heads as (F, H), not (H, F)": lambda: masked(
            (resplit(q) * F**-0.5) @ resplit(k).swapaxes(2, 3)
        ),
    }
    if H > 1:
        found["queries and keys are of different heads"] = lambda: masked(
            (q * F**-0.5) @ np.roll(k, 1, axis=1).swapaxes(2, 3)
        )
    G = op.layer.config.num_global_tokens if op.name.startswith("encoder") else 0
    is_global = np.arange(k.shape[2])[None, None] < G
    if visible is not None:
        is_padding = visible.shape[1] == 1
        bug = "padding keys are not masked: no mask, or one on queries" if is_padding else "the mask is missing"
        found[bug] = lambda: right
        found["the mask is inverted"] = lambda: masked(right, ~visible | is_global)
        if visible.shape[1] == L > 1:
            ahead = np.concatenate([visible[:, 1:], np.ones_like(visible[:, :1])], axis=1)
            behind = np.concatenate([visible[:, :1], visible[:, :-1]], axis=1)
            found["the causal mask lets each token see the next one"] = lambda: masked(right, ahead)
            found["the causal mask hides each token from itself"] = lambda: masked(right, behind)
    if G:
        found["global tokens are masked as keys"] = lambda: masked(
            right, ~is_global if visible is None else visible & ~is_global
        )
        found["global tokens are not among the keys"] = lambda: masked(right)[..., G:]
        found |= other_blocks(op)
    return found


def softmax_bugs(op: FailedOperation) -> Variants:
    """Compute another function of the scores."""
    (scores,) = op.inputs
    return {
        "softmax runs over the queries": lambda: softmax(scores.swapaxes(2, 3)).swapaxes(2, 3),
        "softmax is taken twice": lambda: softmax(softmax(scores)),
        "softmax is a sigmoid": lambda: 0.5 * (1 + np.tanh(0.5 * np.maximum(scores, -1e3))),
        "softmax has an extra 1 in its denominator": lambda: softmax(with_zero(scores))[..., 1:],
    }


def weighted_sum_bugs(op: FailedOperation) -> Variants:
    """Compute the weighted sum of wrong values."""
    probs, v = op.inputs
    found: Variants = {
        "values are in the reverse order": lambda: probs @ v[:, :, ::-1],
        "values are split into heads as (F, H), not (H, F)": lambda: probs @ resplit(v),
    }
    if v.shape[1] > 1:
        found["probabilities and values are of different heads"] = lambda: probs @ np.roll(v, 1, axis=1)
    keys = op.layer.tensors.get(op.name.replace("context", "k_proj"))
    if keys is not None:
        found["keys are used as values"] = lambda: probs @ split_heads(keys, v.shape[1])
    elif (seen := encoder_keys(op)) is not None and seen.shape == v.shape:
        found["keys are used as values"] = lambda: probs @ seen
    if op.name.replace("context", "probs") not in op.layer.tensors:
        found |= other_blocks(op)
    return found


def encoder_keys(op: FailedOperation) -> np.ndarray | None:
    """Collect the keys that a block or a global token attends to."""
    place, _, part = op.name.partition(".self_attn.")
    shown = [op.layer.tensors.get(f"{place}.self_attn.{stream}.k_proj") for stream in ("globals", "tokens")]
    keys = [split_heads(x, op.layer.config.encoder_attention_heads) for x in shown if x is not None]
    if len(keys) < 2:
        return None
    if part.startswith("local"):
        layer, block = numbers_in(op.name)
        blocks = layer_blocks(op.layer.config, keys[1].shape[2], layer)
        keys[1] = keys[1][:, :, slice(*blocks[block])]
    return np.concatenate(keys, axis=2)


def resplit(x_BHTF: np.ndarray) -> np.ndarray:
    """Split into heads as (F, H) instead of (H, F)."""
    B, H, T, F = x_BHTF.shape
    return merge_heads(x_BHTF).reshape(B, T, F, H).transpose(0, 3, 1, 2)


def with_zero(scores: np.ndarray) -> np.ndarray:
    """Put a score of 0 before the others."""
    return np.concatenate([np.zeros_like(scores[..., :1]), scores], axis=-1)
