"""Known bugs of position-wise operations: LayerNorm, linear maps, activations, residual sums. [spec 16]"""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden.attention import split_heads
from pegasusx_ref.golden.feed_forward import ACTIVATIONS, linear
from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.verification.known_bugs.block_bugs import other_blocks
from pegasusx_ref.verification.known_bugs.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.known_bugs.quantization_bugs import quantized_linear_bugs

EPS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)
SPARE_ROWS = 8  # rows that a fit must explain in addition to as many as there are unknowns
NORMS = ("self_attn_layer_norm", "global_self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")


def layer_norm_bugs(op: FailedOperation) -> Variants:
    """Compute LayerNorm with a wrong eps, variance, weight or input, or not at all."""
    (x,), (weight, bias, eps) = op.inputs, (op.settings[n] for n in ("weight", "bias", "eps"))
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered**2).mean(axis=-1, keepdims=True)
    n = x.shape[-1]
    ones, zeros = np.ones_like(weight), np.zeros_like(bias)
    found: Variants = {
        f"LayerNorm's eps is {other:g}, not {eps:g}": partial(layer_norm, x, weight, bias, other)
        for other in EPS
        if other != eps
    }
    found |= {
        "eps is added outside the square root": lambda: centered / (np.sqrt(variance) + eps) * weight + bias,
        "the variance is divided by n - 1": lambda: centered / np.sqrt(variance * n / (n - 1) + eps) * weight + bias,
        "the mean is not subtracted": lambda: x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight + bias,
        "LayerNorm has no scale": lambda: layer_norm(x, ones, bias, eps),
        "LayerNorm has no shift": lambda: layer_norm(x, weight, zeros, eps),
        "LayerNorm has neither scale nor shift: weights of its own that were not loaded?": lambda: layer_norm(
            x, ones, zeros, eps
        ),
        "LayerNorm is missing": lambda: x,
    }
    place, _, own = op.name.rpartition(".")
    stream = place.rpartition(".")[2]  # tokens, globals, or a layer's number
    layer = place.removesuffix(".tokens").removesuffix(".globals")
    if stream == "globals" and own == "self_attn_layer_norm":
        own = "global_self_attn_layer_norm"
    for other in NORMS:
        if other != own and (w := op.layer.weights.get(f"{layer}.{other}.weight")) is not None:
            b = op.layer.weights[f"{layer}.{other}.bias"]
            found[f"the weights of {other} are used"] = partial(layer_norm, x, w, b, eps)
    # In post-LN, the input is the residual sum.
    inside = f"{layer}.self_attn.{stream}" if stream in ("tokens", "globals") else f"{layer}.self_attn"
    updates = {
        "self_attn_layer_norm": f"{inside}.out_proj",
        "global_self_attn_layer_norm": f"{inside}.out_proj",
        "encoder_attn_layer_norm": f"{layer}.encoder_attn.out_proj",
        "final_layer_norm": f"{place}.fc2",
    }
    update = op.layer.tensors.get(updates.get(own, ""))
    if update is not None and update.shape == x.shape:
        found["LayerNorm follows the residual sum (post-LN), where it should precede the sublayer (pre-LN)"] = lambda: (
            layer_norm(x + update, weight, bias, eps)
        )
    return found


def linear_bugs(op: FailedOperation) -> Variants:
    """Compute a linear map with a wrong weight or bias, or of wrong rows."""
    (x,), weight, bias = op.inputs, op.settings["weight"], op.settings["bias"]

    def with_weights(weight: Any, bias: np.ndarray | None = None) -> np.ndarray:
        return linear(x, dense(weight, x.dtype), bias)

    found = quantized_linear_bugs(op)
    if weight.shape[0] == weight.shape[1]:
        found["the weight is transposed"] = lambda: linear(x, weight.T, bias)
    if bias is not None:
        found["the bias is missing"] = lambda: linear(x, weight)
        found["the bias is added twice"] = lambda: linear(x, weight, 2 * bias)
    own = re.sub(r"\.(tokens|globals)\.", ".", op.name)
    for name, other in op.layer.weights.items():
        # The weight of the same name in another layer.
        if name != f"{own}.weight" and re.sub(r"\.\d+\.", ".", name) == re.sub(r"\.\d+\.", ".", f"{own}.weight"):
            bias_there = None if bias is None else op.layer.weights[name.removesuffix("weight") + "bias"]
            found[f"the weights of {name.removesuffix('.weight')} are used"] = partial(with_weights, other, bias_there)
    if op.name == "lm_head":
        found["logits are divided by sqrt(D)"] = lambda: linear(x, weight) / math.sqrt(x.shape[-1])
    if match := re.search(r"\.([qkv]|out)_proj$", op.name):
        place = own[: -len(match.group())]
        for part in ("q", "k", "v", "out"):
            if part != match.group(1):
                other = op.layer.weights[f"{place}.{part}_proj.weight"]
                found[f"the weights of {part}_proj are used"] = partial(with_weights, other)
    config = op.layer.config
    if op.name.endswith(".out_proj"):
        encoder = op.name.startswith("encoder")
        heads = split_heads(x, config.encoder_attention_heads if encoder else config.decoder_attention_heads)
        found["heads are merged without the transposition from (B, H, T, F) to (B, T, H, F)"] = lambda: linear(
            heads.reshape(x.shape), weight
        )
        if op.name.replace("tokens.out_proj", "local.0.context") not in op.layer.tensors:
            found |= other_blocks(op)
    if re.search(r"encoder_attn\.[kv]_proj$", op.name):
        B, _, D = x.shape
        of_globals = np.full((B, config.num_global_tokens, D), np.nan)  # unknown: not compared
        bug = "cross-attention sees the global tokens too, {} the others"
        found[bug.format("before")] = lambda: np.concatenate([of_globals, linear(x, weight)], axis=1)
        found[bug.format("after")] = lambda: np.concatenate([linear(x, weight), of_globals], axis=1)
    return found


def fitted_linear_bugs(
    name: str, x: np.ndarray, settings: Mapping[str, Any], candidate: np.ndarray
) -> dict[str, np.ndarray]:
    """Fit an unknown bias or weight to the candidate's rows; a diagnosis needs more rows than unknowns.

    Args:
        name: the name of the result.
        x: input rows (n, D).
        settings: weight (E, D), and bias (E,) or None.
        candidate: the candidate's result (n, E).

    Returns:
        For each bug in words, the rows with it.
    """
    weight, bias = settings["weight"], settings["bias"]
    n, D = len(np.unique(x, axis=0)), x.shape[1]
    found = {}
    if n > SPARE_ROWS or (bias is None and n > 1):
        right = linear(x, weight, bias)
        bug = "a bias is added" if bias is None else "the bias differs"
        found[bug] = right + (candidate - right).mean(axis=0)
    if n >= D + SPARE_ROWS:
        terms = x if bias is None else np.c_[x, np.ones(len(x))]
        fitted, *_ = np.linalg.lstsq(terms, candidate)
        fitted += np.linalg.lstsq(terms, candidate - terms @ fitted)[0]  # iterative refinement
        bug = "the head is not tied to the embeddings" if name == "lm_head" else "another matrix"
        found[f"the weight differs: {bug}"] = terms @ fitted
    return found


def activation_bugs(op: FailedOperation) -> Variants:
    """Compute another activation, or none."""
    (x,), name = op.inputs, op.settings["name"]
    found: Variants = {
        f"the activation is {other}, not {name}": partial(ACTIVATIONS[other], x)
        for other in ("relu", "gelu", "gelu_new", "silu")
        if ACTIVATIONS[other] is not ACTIVATIONS[name]
    }
    return found | {"the activation is missing": lambda: x}


def add_bugs(op: FailedOperation) -> Variants:
    """Compute a wrong residual sum."""
    x, update = op.inputs
    found: Variants = {
        "the residual is missing": lambda: update,
        "the update is missing": lambda: x,
        "the update is subtracted": lambda: x - update,
        "the update is added twice": lambda: x + 2 * update,
        "the update is halved": lambda: x + update / 2,
    }
    place, _, own = op.name.rpartition(".")
    if own == "output":
        layer_input, normed = (op.layer.tensors.get(f"{place}.{name}") for name in ("input", "final_layer_norm"))
        if layer_input is not None:
            found["the layer changes nothing: its output is its input"] = lambda: layer_input
        if normed is not None:
            found["the residual is taken after the LayerNorm"] = lambda: normed + update
    return found
