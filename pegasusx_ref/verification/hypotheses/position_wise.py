"""Mistakes in what is done to each row on its own: LayerNorm, linear maps, activations, residuals. [spec 16]"""

import math
import re
from functools import partial

import numpy as np

from pegasusx_ref.golden.attention import split_heads
from pegasusx_ref.golden.feed_forward import ACTIVATIONS, linear
from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.verification.hypotheses.blocks import other_blocks
from pegasusx_ref.verification.hypotheses.case import Case, Variants

EPS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)
NORMS = ("self_attn_layer_norm", "global_self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")


def of_layer_norm(case: Case) -> Variants:
    """LayerNorm with another eps, another variance, other weights, elsewhere, or not at all."""
    (x,), (weight, bias, eps) = case.inputs, (case.settings[n] for n in ("weight", "bias", "eps"))
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
        "eps stands outside the root": lambda: centered / (np.sqrt(variance) + eps) * weight + bias,
        "the variance is divided by n - 1": lambda: centered / np.sqrt(variance * n / (n - 1) + eps) * weight + bias,
        "the mean is not subtracted": lambda: x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight + bias,
        "LayerNorm has no scale": lambda: layer_norm(x, ones, bias, eps),
        "LayerNorm has no shift": lambda: layer_norm(x, weight, zeros, eps),
        "LayerNorm has neither scale nor shift: weights of its own that were not loaded?": lambda: layer_norm(
            x, ones, zeros, eps
        ),
        "LayerNorm is missing": lambda: x,
    }
    place, _, own = case.name.rpartition(".")
    stream = place.rpartition(".")[2]  # tokens, globals, or a layer's number
    layer = place.removesuffix(".tokens").removesuffix(".globals")
    if stream == "globals" and own == "self_attn_layer_norm":
        own = "global_self_attn_layer_norm"
    for other in NORMS:
        if other != own and (w := case.around.weights.get(f"{layer}.{other}.weight")) is not None:
            b = case.around.weights[f"{layer}.{other}.bias"]
            found[f"the weights of {other} are used"] = partial(layer_norm, x, w, b, eps)
    # Where LayerNorm follows the sublayer, it gets the sum.
    inside = f"{layer}.self_attn.{stream}" if stream in ("tokens", "globals") else f"{layer}.self_attn"
    updates = {
        "self_attn_layer_norm": f"{inside}.out_proj",
        "global_self_attn_layer_norm": f"{inside}.out_proj",
        "encoder_attn_layer_norm": f"{layer}.encoder_attn.out_proj",
        "final_layer_norm": f"{place}.fc2",
    }
    update = case.around.tensors.get(updates.get(own, ""))
    if update is not None and update.shape == x.shape:
        found["LayerNorm follows the residual sum (post-LN), where it should come before the sublayer"] = lambda: (
            layer_norm(x + update, weight, bias, eps)
        )
    return found


def of_linear(case: Case) -> Variants:
    """A product with a transposed matrix, with another's weights, without its bias, or of other rows."""
    (x,), weight, bias = case.inputs, case.settings["weight"], case.settings["bias"]
    found: Variants = {}
    if weight.shape[0] == weight.shape[1]:
        found["the weight is transposed"] = lambda: linear(x, weight.T, bias)
    if bias is not None:
        found["the bias is missing"] = lambda: linear(x, weight)
        found["the bias is added twice"] = lambda: linear(x, weight, 2 * bias)
    own = re.sub(r"\.(tokens|globals)\.", ".", case.name)
    for name, other in case.around.weights.items():
        # Another layer's matrix of the same name.
        if name != f"{own}.weight" and re.sub(r"\.\d+\.", ".", name) == re.sub(r"\.\d+\.", ".", f"{own}.weight"):
            bias_there = None if bias is None else case.around.weights[name.removesuffix("weight") + "bias"]
            found[f"the weights of {name.removesuffix('.weight')} are used"] = partial(linear, x, other, bias_there)
    if case.name == "lm_head":
        found["logits are divided by sqrt(D)"] = lambda: linear(x, weight) / math.sqrt(x.shape[-1])
    if match := re.search(r"\.([qkv]|out)_proj$", case.name):
        place = own[: -len(match.group())]
        for part in ("q", "k", "v", "out"):
            if part != match.group(1):
                other = case.around.weights[f"{place}.{part}_proj.weight"]
                found[f"the weights of {part}_proj are used"] = partial(linear, x, other)
    config = case.around.config
    if case.name.endswith(".out_proj"):
        encoder = case.name.startswith("encoder")
        heads = split_heads(x, config.encoder_attention_heads if encoder else config.decoder_attention_heads)
        found["heads are joined without putting them behind the tokens again"] = lambda: linear(
            heads.reshape(x.shape), weight
        )
        if case.name.replace("tokens.out_proj", "local.0.context") not in case.around.tensors:
            found |= other_blocks(case)
    if re.search(r"encoder_attn\.[kv]_proj$", case.name):
        B, _, D = x.shape
        others = np.full((B, config.num_global_tokens, D), np.nan)  # not known here
        mistake = "cross-attention sees the global tokens too, {} the others"
        found[mistake.format("before")] = lambda: np.concatenate([others, linear(x, weight)], axis=1)
        found[mistake.format("behind")] = lambda: np.concatenate([linear(x, weight), others], axis=1)
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


def of_add(case: Case) -> Variants:
    """A residual connection that is not one."""
    x, update = case.inputs
    found: Variants = {
        "the residual is missing": lambda: update,
        "the update is missing": lambda: x,
        "the update is subtracted": lambda: x - update,
        "the update is added twice": lambda: x + 2 * update,
        "the update is halved": lambda: x + update / 2,
    }
    place, _, own = case.name.rpartition(".")
    if own == "output":
        given, normed = (case.around.tensors.get(f"{place}.{name}") for name in ("input", "final_layer_norm"))
        if given is not None:
            found["the layer changes nothing: its output is its input"] = lambda: given
        if normed is not None:
            found["the residual is taken after the LayerNorm"] = lambda: normed + update
    return found
