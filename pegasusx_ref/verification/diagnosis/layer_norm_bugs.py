"""Known bugs of LayerNorm. [spec 16]"""

from functools import partial

import numpy as np

from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.diagnosis.neighbour_bugs import other_inputs
from pegasusx_ref.verification.diagnosis.rounded_operands import COMMON
from pegasusx_ref.verification.diagnosis.row_variants import Rows, RowVariants, screened

EPS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)


def layer_norm_bugs(op: FailedOperation) -> Variants:
    """Compute LayerNorm with a wrong eps, variance, weight or input, or not at all."""
    (x,), (weight, bias, eps) = op.inputs, (op.settings[n] for n in ("weight", "bias", "eps"))
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered**2).mean(axis=-1, keepdims=True)
    n = x.shape[-1]
    ones, zeros, heads = np.ones_like(weight), np.zeros_like(bias), op.layer.config.encoder_attention_heads
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
        "LayerNorm is applied twice": lambda: layer_norm(layer_norm(x, weight, bias, eps), weight, bias, eps),
        "the root of the variance is missing": lambda: centered / (variance + eps) * weight + bias,
        "the result is not divided by the deviation": lambda: centered * weight + bias,
        "the scale is 1 + weight: the weight is that of Gemma": lambda: layer_norm(x, weight + 1, bias, eps),
        "the scale is weight - 1: the weight is stored as in Gemma": lambda: layer_norm(x, weight - 1, bias, eps),
        "the shift is subtracted": lambda: layer_norm(x, weight, -bias, eps),
        "each head is normalized apart": lambda: normalize_groups(x, heads, eps) * weight + bias,
    }
    place, _, own = op.name.rpartition(".")
    stream = place.rpartition(".")[2]  # tokens, globals, or a layer's number
    layer = place.removesuffix(".tokens").removesuffix(".globals")
    if stream == "globals" and own == "self_attn_layer_norm":
        own = "global_self_attn_layer_norm"
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
    return found | screened(op, lambda rows: layer_norm(rows(x), weight, bias, eps), many_layer_norm_bugs(op))


def many_layer_norm_bugs(op: FailedOperation) -> RowVariants:
    """Compute LayerNorm with the weights of any other, of another input, or of rounded numbers."""
    (x,), (weight, bias, eps) = op.inputs, (op.settings[n] for n in ("weight", "bias", "eps"))

    def with_weights(scale: np.ndarray, shift: np.ndarray, rows: Rows) -> np.ndarray:
        return layer_norm(rows(x), scale, shift, eps)

    place = op.name.rpartition(".")[0].removesuffix(".tokens").removesuffix(".globals")
    found: RowVariants = {}
    for name, scale in op.layer.weights.items():
        if name.endswith("layer_norm.weight") and scale.shape == weight.shape:
            norm = name.removesuffix(".weight")
            found[f"the weights of {norm.removeprefix(place + '.')} are used"] = partial(
                with_weights, scale, op.layer.weights[f"{norm}.bias"]
            )
    for name, other in other_inputs(op).items():
        found[f"its input is {name}"] = partial(lambda other, rows: layer_norm(rows(other), weight, bias, eps), other)
    for dtype, to in COMMON.items():
        found[f"its weights are rounded to {dtype}"] = partial(with_weights, to(weight), to(bias))
        found[f"its input is rounded to {dtype}"] = partial(
            lambda to, rows: layer_norm(to(rows(x)), weight, bias, eps), to
        )
    return found


def normalize_groups(x: np.ndarray, number: int, eps: float) -> np.ndarray:
    """Normalize groups of features, each for itself."""
    groups = x.reshape(*x.shape[:-1], number, -1)
    centered = groups - groups.mean(axis=-1, keepdims=True)
    normalized: np.ndarray = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)
    return normalized.reshape(x.shape)
