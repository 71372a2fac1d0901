"""Known bugs of linear maps: weights, biases, rounded operands, wrong rows. [spec 16]"""

import math
import re
from functools import partial
from typing import Any

import numpy as np

from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden.feed_forward import activation, linear
from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.diagnosis.neighbour_bugs import is_input_shown, other_inputs, own_input, parameter_place
from pegasusx_ref.verification.diagnosis.projection_bugs import (
    cross_attention_bugs,
    head_order_bugs,
    output_projection_bugs,
)
from pegasusx_ref.verification.diagnosis.quantization_bugs import quantized_linear_bugs
from pegasusx_ref.verification.diagnosis.rounded_operands import COMMON, weight_roundings
from pegasusx_ref.verification.diagnosis.row_variants import Rows, RowVariants, screened, whole

NUM_FEATURES = 48  # of a result that a rounded matrix must explain before all are computed


def linear_bugs(op: FailedOperation) -> Variants:
    """Compute a linear map with a wrong weight, bias or input."""
    (x,), weight, bias = op.inputs, op.settings["weight"], op.settings["bias"]
    found = quantized_linear_bugs(op) | whole(weight_bugs(op)) | output_projection_bugs(op) | cross_attention_bugs(op)
    if re.search(r"\.([qkv]|out)_proj$|lm_head$", op.name):
        found["its input is of another batch row"] = lambda: linear(np.roll(x, 1, axis=0), weight, bias)
    many = other_weights(op) | wrong_inputs(op) | head_order_bugs(op)
    return found | screened(op, lambda rows: linear(rows(x), weight, bias), many) | screened_roundings(op)


def weight_bugs(op: FailedOperation) -> RowVariants:
    """Compute with the weight or the bias changed."""
    (x,), weight, bias = op.inputs, op.settings["weight"], op.settings["bias"]
    found: RowVariants = {}
    if weight.shape[0] == weight.shape[1]:
        found["the weight is transposed"] = lambda rows: linear(rows(x), weight.T, bias)
    if bias is not None:
        found["the bias is missing"] = lambda rows: linear(rows(x), weight)
        found["the bias is added twice"] = lambda rows: linear(rows(x), weight, 2 * bias)
        found["the bias is subtracted"] = lambda rows: linear(rows(x), weight, -bias)
    if op.name == "lm_head":
        root = math.sqrt(x.shape[-1])
        found["logits are divided by sqrt(D)"] = lambda rows: linear(rows(x), weight, bias) / root
        found["logits are multiplied by sqrt(D): the head is tied to the scaled embeddings"] = lambda rows: (
            linear(rows(x), weight, bias) * root
        )
        found["logits are divided by D"] = lambda rows: linear(rows(x), weight, bias) / root**2
    if op.name.endswith("fc2"):
        name = op.layer.config.activation_function
        found["the activation is applied to the result"] = lambda rows: activation(linear(rows(x), weight, bias), name)
    return found


def other_weights(op: FailedOperation) -> RowVariants:
    """Compute with the weights of every other linear map of the same shape."""
    (x,), weight, bias = op.inputs, op.settings["weight"], op.settings["bias"]
    own, weights = parameter_place(op.name), op.layer.weights

    def with_weights(matrix: Any, shift: np.ndarray | None, rows: Rows) -> np.ndarray:
        return linear(rows(x), dense(matrix, x.dtype), shift)

    found: RowVariants = {}
    for name, other in weights.items():
        place = name.removesuffix(".weight")
        if place in (own, name) or other.shape != weight.shape:
            continue
        short, shift = place.removeprefix(own.rpartition(".")[0] + "."), weights.get(f"{place}.bias")
        found[f"the weights of {short} are used"] = partial(with_weights, other, shift)
        if bias is not None and shift is not None:
            found[f"the bias of {short} is used"] = partial(with_weights, weight, shift)
    return found


def wrong_inputs(op: FailedOperation) -> RowVariants:
    """Compute from another tensor than the input."""
    (x,), weight, bias = op.inputs, op.settings["weight"], op.settings["bias"]

    def of(other: np.ndarray, rows: Rows) -> np.ndarray:
        return linear(rows(other), weight, bias)

    found: RowVariants = {f"its input is {name}": partial(of, other) for name, other in other_inputs(op).items()}
    norms = {"its input is normalized twice": parameter_place(own_input(op.name))}
    if match := re.search(r"(.*encoder_attn)\.[kv]_proj$", op.name):
        norms["the encoder's output is normalized again, as queries are"] = f"{match[1]}_layer_norm"
    for bug, norm in norms.items():
        if norm.endswith("layer_norm") and is_input_shown(op):
            scale, shift = (op.layer.weights[f"{norm}.{part}"] for part in ("weight", "bias"))
            twice = layer_norm(x, scale, shift, op.layer.config.layer_norm_eps)
            found[bug] = partial(of, twice)
    return found


def screened_roundings(op: FailedOperation) -> Variants:
    """Round operands, and keep the ways that explain some features of some rows: a matrix is large."""
    weight, bias, candidate = op.settings["weight"], op.settings["bias"], op.layer.tensors.get(op.name)
    if candidate is None or candidate.shape[-1] != len(weight):
        return {}
    largest = np.abs(weight).max(axis=1).argmax()  # whose row has the largest number, and with it any scale
    few = np.union1d(np.linspace(0, len(weight) - 1, NUM_FEATURES).astype(int), largest)
    settings = {"weight": weight[few], "bias": None if bias is None else bias[few]}
    part = op._replace(settings=settings, layer=op.layer._replace(tensors={op.name: candidate[..., few]}))
    found = screened(part, lambda rows: linear(rows(op.inputs[0]), **settings), rounded_bugs(part))
    return whole({bug: variant for bug, variant in rounded_bugs(op).items() if bug in found})


def rounded_bugs(op: FailedOperation) -> RowVariants:
    """Compute with the weight, the input or both rounded."""
    (x,), weight, bias = op.inputs, op.settings["weight"], op.settings["bias"]
    is_bfloat16 = np.array_equal(COMMON["bfloat16"](weight), weight)  # then, so are the numbers that it is rounded to
    stored = COMMON["bfloat16"] if is_bfloat16 else np.asarray
    found: RowVariants = {
        f"the weight is rounded to {name}": partial(lambda to, rows: linear(rows(x), stored(to(weight)), bias), to)
        for name, to in weight_roundings(weight.shape[1]).items()
    }
    for name, to in COMMON.items():
        found[f"its input is rounded to {name}"] = partial(lambda to, rows: linear(to(rows(x)), weight, bias), to)
    for name in sorted(COMMON, key=lambda name: not name.startswith("tf32")):  # its digits are those of float16
        to = COMMON[name]
        found[f"weight and input are rounded to {name}"] = partial(
            lambda to, rows: linear(to(rows(x)), to(weight), bias), to
        )
    return found
