"""Mistakes inside attention: scale, mask, heads, softmax, values. [spec 16]"""

import math

import numpy as np

from pegasusx_ref.golden.attention import merge_heads, softmax, split_heads
from pegasusx_ref.model.encoder import layer_blocks
from pegasusx_ref.tracing.trace_points import numbers_in
from pegasusx_ref.verification.hypotheses.blocks import other_blocks
from pegasusx_ref.verification.hypotheses.case import Case, Variants
from pegasusx_ref.verification.operations import LOWEST


def of_scores(case: Case) -> Variants:
    """Another scale, another mask, other heads, or other keys."""
    (q, k), visible = case.inputs, case.settings["visible"]
    _, H, L, F = q.shape
    right = (q * F**-0.5) @ k.swapaxes(2, 3)  # in this order, as golden scores: where nothing changes, no rounding does

    def masked(scores: np.ndarray, seen: np.ndarray | None = visible) -> np.ndarray:
        return scores if seen is None else np.where(seen[:, None], scores, LOWEST)

    found: Variants = {
        "scores are not scaled": lambda: masked(q @ k.swapaxes(2, 3)),
        "scores are scaled by sqrt(D), not by the root of a head's width": lambda: masked(right / math.sqrt(H)),
        "the scale is applied twice: by the head's width, not by its root": lambda: masked(right / math.sqrt(F)),
        "keys are in the reverse order": lambda: masked(right[..., ::-1]),
        "queries and keys are cut into heads the other way round": lambda: masked(
            (recut(q) * F**-0.5) @ recut(k).swapaxes(2, 3)
        ),
    }
    if H > 1:
        found["heads of queries and keys do not belong together"] = lambda: masked(
            (q * F**-0.5) @ np.roll(k, 1, axis=1).swapaxes(2, 3)
        )
    G = case.around.config.num_global_tokens if case.name.startswith("encoder") else 0
    is_global = np.arange(k.shape[2])[None, None] < G
    if visible is not None:
        is_padding = visible.shape[1] == 1
        what = "padding keys are seen: no mask, or one on queries" if is_padding else "the mask is missing"
        found[what] = lambda: right
        found["the mask is the other way round"] = lambda: masked(right, ~visible | is_global)
        if visible.shape[1] == L > 1:
            ahead = np.concatenate([visible[:, 1:], np.ones_like(visible[:, :1])], axis=1)
            behind = np.concatenate([visible[:, :1], visible[:, :-1]], axis=1)
            found["the causal mask lets each token see the next one"] = lambda: masked(right, ahead)
            found["the causal mask hides each token from itself"] = lambda: masked(right, behind)
    if G:
        found["global tokens are hidden from the others"] = lambda: masked(
            right, ~is_global if visible is None else visible & ~is_global
        )
        found["global tokens are not among the keys"] = lambda: masked(right)[..., G:]
        found |= other_blocks(case)
    return found


def of_softmax(case: Case) -> Variants:
    """Softmax over something else."""
    (scores,) = case.inputs
    return {
        "softmax runs over the queries": lambda: softmax(scores.swapaxes(2, 3)).swapaxes(2, 3),
        "softmax is taken twice": lambda: softmax(softmax(scores)),
        "softmax is a sigmoid": lambda: 0.5 * (1 + np.tanh(0.5 * np.maximum(scores, -1e3))),
        "softmax has one more in its denominator": lambda: softmax(with_zero(scores))[..., 1:],
    }


def of_weighted_sum(case: Case) -> Variants:
    """Other values."""
    probs, v = case.inputs
    found: Variants = {
        "values are in the reverse order": lambda: probs @ v[:, :, ::-1],
        "values are cut into heads the other way round": lambda: probs @ recut(v),
    }
    if v.shape[1] > 1:
        found["heads of weights and values do not belong together"] = lambda: probs @ np.roll(v, 1, axis=1)
    keys = case.around.tensors.get(case.name.replace("context", "k_proj"))
    if keys is not None:
        found["keys are taken for values"] = lambda: probs @ split_heads(keys, v.shape[1])
    elif (seen := encoder_keys(case)) is not None and seen.shape == v.shape:
        found["keys are taken for values"] = lambda: probs @ seen
    if case.name.replace("context", "probs") not in case.around.tensors:
        found |= other_blocks(case)
    return found


def encoder_keys(case: Case) -> np.ndarray | None:
    """Collect the keys that a block, or a global token, sees."""
    place, _, part = case.name.partition(".self_attn.")
    given = [case.around.tensors.get(f"{place}.self_attn.{stream}.k_proj") for stream in ("globals", "tokens")]
    parts = [split_heads(x, case.around.config.encoder_attention_heads) for x in given if x is not None]
    if len(parts) < 2:
        return None
    if part.startswith("local"):
        layer, block = numbers_in(case.name)
        blocks = layer_blocks(case.around.config, parts[1].shape[2], layer)
        parts[1] = parts[1][:, :, slice(*blocks[block])]
    return np.concatenate(parts, axis=2)


def recut(x_BHTF: np.ndarray) -> np.ndarray:
    """Take feature f of head h where feature h of head f would be: (F, H) instead of (H, F)."""
    B, H, T, F = x_BHTF.shape
    return merge_heads(x_BHTF).reshape(B, T, F, H).transpose(0, 3, 1, 2)


def with_zero(scores: np.ndarray) -> np.ndarray:
    """Put a score of 0 before the others."""
    return np.concatenate([np.zeros_like(scores[..., :1]), scores], axis=-1)
