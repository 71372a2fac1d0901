"""Mistakes that people make: for each, what the operation would give with it. [spec 16]"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.attention import softmax
from pegasusx_ref.embedding import sinusoidal_positions
from pegasusx_ref.feed_forward import ACTIVATIONS, linear
from pegasusx_ref.normalization import layer_norm


class Case(NamedTuple):
    """An operation whose result is wrong.

    Attributes:
        name: of its result.
        inputs: the candidate's own tensors that went in.
        settings: what else went in, as the operation names it.
        weights: of the model, by checkpoint name.
    """

    name: str
    inputs: tuple[np.ndarray, ...]
    settings: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]


Variants = dict[str, Callable[[], np.ndarray]]  # a mistake in words, and the result with it


def of_layer_norm(case: Case) -> Variants:
    """LayerNorm with another eps, another variance, other weights, or none."""
    (x,), (weight, bias, eps) = case.inputs, (case.settings[n] for n in ("weight", "bias", "eps"))
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered**2).mean(axis=-1, keepdims=True)
    n = x.shape[-1]
    found: Variants = {
        f"LayerNorm's eps is {other:.0e}, not {eps:.0e}": partial(layer_norm, x, weight, bias, other)
        for other in (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)
        if other != eps
    }
    found |= {
        "eps stands outside the root": lambda: centered / (np.sqrt(variance) + eps) * weight + bias,
        "the variance is divided by n - 1": lambda: centered / np.sqrt(variance * n / (n - 1) + eps) * weight + bias,
        "the mean is not subtracted": lambda: x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight + bias,
        "LayerNorm has no scale": lambda: layer_norm(x, np.ones_like(weight), bias, eps),
        "LayerNorm has no shift": lambda: layer_norm(x, weight, np.zeros_like(bias), eps),
        "LayerNorm is missing": lambda: x,
    }
    # Before attention tokens and global tokens have a LayerNorm of their own.
    if match := re.search(r"\.(tokens|globals)\.self_attn_layer_norm$", case.name):
        whose, prefix = ("the global tokens'", "global_") if match.group(1) == "tokens" else ("the tokens'", "")
        other = f"{case.name[: match.start()]}.{prefix}self_attn_layer_norm"
        w, b = case.weights[f"{other}.weight"], case.weights[f"{other}.bias"]
        found[f"{whose} LayerNorm is used"] = partial(layer_norm, x, w, b, eps)
    return found


def of_linear(case: Case) -> Variants:
    """A product with a transposed matrix, with another's weights, or without its bias."""
    (x,), weight, bias = case.inputs, case.settings["weight"], case.settings["bias"]
    found: Variants = {}
    if weight.shape[0] == weight.shape[1]:
        found["the weight is transposed"] = lambda: linear(x, weight.T, bias)
    if bias is not None:
        found["the bias is missing"] = lambda: linear(x, weight)
        found["the bias is added twice"] = lambda: linear(x, weight, 2 * bias)
    if match := re.search(r"\.([qkv]|out)_proj$", case.name):
        place = re.sub(r"\.(tokens|globals)\.", ".", case.name)[: -len(match.group())]
        for part in ("q", "k", "v", "out"):
            if part != match.group(1):
                other = case.weights[f"{place}.{part}_proj.weight"]
                found[f"the weights of {part}_proj are used"] = partial(linear, x, other)
    return found


def of_activation(case: Case) -> Variants:
    """Another activation."""
    (x,), name = case.inputs, case.settings["name"]
    mine = ACTIVATIONS[name]
    found: Variants = {
        f"the activation is {other}, not {name}": partial(ACTIVATIONS[other], x)
        for other in ("relu", "gelu", "gelu_new", "silu")
        if ACTIVATIONS[other] is not mine
    }
    return found | {"the activation is missing": lambda: x}


def of_embed_tokens(case: Case) -> Variants:
    """Another scale of the embeddings."""
    ids, table, scale = (case.settings[n] for n in ("ids", "table", "scale"))
    root = math.sqrt(table.shape[1])
    found: Variants = {"padding's embedding is 0": lambda: np.where(ids[..., None] == 0, 0, table[ids]) * scale}
    if scale == 1:
        return found | {"embeddings are scaled by sqrt(D)": lambda: table[ids] * root}
    return found | {
        "the embedding scale is missing": lambda: table[ids],
        "the embedding scale is applied twice": lambda: table[ids] * scale**2,
        "embeddings are divided by sqrt(D)": lambda: table[ids] / root,
    }


def of_add_positions(case: Case) -> Variants:
    """Other positions."""
    (x,), start = case.inputs, case.settings["start"]
    _, T, D = x.shape
    here = sinusoidal_positions(start, T, D)
    sines, cosines = here[:, : D // 2], here[:, D // 2 :]
    angles = np.arange(start, start + T)[:, None] * 10000.0 ** (-np.arange(D // 2) / (D // 2))
    return {
        "positions are missing": lambda: x,
        "positions start one too late": lambda: x + sinusoidal_positions(start + 1, T, D),
        "positions start two too late": lambda: x + sinusoidal_positions(start + 2, T, D),
        "sines and cosines are interleaved": lambda: x + np.stack([sines, cosines], axis=2).reshape(T, D),
        "cosines come before sines": lambda: x + np.concatenate([cosines, sines], axis=1),
        "frequencies are spaced by 1 / (D/2), not 1 / (D/2 - 1)": lambda: (
            x + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        ),
        "positions are added twice": lambda: x + 2 * here,
    }


def of_scores(case: Case) -> Variants:
    """Another scale, or another mask."""
    (q, k), visible = case.inputs, case.settings["visible"]
    _, H, L, F = q.shape
    products = q @ k.swapaxes(2, 3)
    lowest = np.finfo(np.float64).min

    def masked(scores: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
        return scores if seen is None else np.where(seen[:, None], scores, lowest)

    found: Variants = {
        "scores are not scaled": lambda: masked(products, visible),
        "scores are scaled by sqrt(D), not by the root of a head's width": lambda: masked(
            products / math.sqrt(H * F), visible
        ),
        "scores are scaled by the head's width, not by its root": lambda: masked(products / F, visible),
        "keys are in the reverse order": lambda: masked(products[..., ::-1] * F**-0.5, visible),
    }
    if H > 1:
        found["heads of queries and keys do not belong together"] = lambda: masked(
            (q @ np.roll(k, 1, axis=1).swapaxes(2, 3)) * F**-0.5, visible
        )
    if visible is not None:
        found["the mask is missing"] = lambda: products * F**-0.5
        if visible.shape[1] == L > 1:
            ahead = np.concatenate([visible[:, 1:], np.ones_like(visible[:, :1])], axis=1)
            behind = np.concatenate([visible[:, :1], visible[:, :-1]], axis=1)
            found["the causal mask lets each token see the next one"] = lambda: masked(products * F**-0.5, ahead)
            found["the causal mask hides each token from itself"] = lambda: masked(products * F**-0.5, behind)
    return found


def of_softmax(case: Case) -> Variants:
    """Softmax over something else."""
    (scores,) = case.inputs
    return {
        "softmax runs over the queries": lambda: softmax(scores.swapaxes(2, 3)).swapaxes(2, 3),
        "softmax is taken twice": lambda: softmax(softmax(scores)),
        "softmax is a sigmoid": lambda: 0.5 * (1 + np.tanh(0.5 * np.maximum(scores, -1e3))),
    }


def of_weighted_sum(case: Case) -> Variants:
    """Other values."""
    probs, v = case.inputs
    found: Variants = {"values are in the reverse order": lambda: probs @ v[:, :, ::-1]}
    if v.shape[1] > 1:
        found["heads of weights and values do not belong together"] = lambda: probs @ np.roll(v, 1, axis=1)
    return found


def of_add(case: Case) -> Variants:
    """A residual connection that is not one."""
    x, update = case.inputs
    return {
        "the residual is missing": lambda: update,
        "the update is missing": lambda: x,
        "the update is subtracted": lambda: x - update,
        "the update is added twice": lambda: x + 2 * update,
        "the update is halved": lambda: x + update / 2,
    }


HYPOTHESES: dict[str, Callable[[Case], Variants]] = {
    "layer_norm": of_layer_norm,
    "linear": of_linear,
    "activation": of_activation,
    "embed_tokens": of_embed_tokens,
    "add_positions": of_add_positions,
    "scores": of_scores,
    "softmax": of_softmax,
    "weighted_sum": of_weighted_sum,
    "add": of_add,
}
