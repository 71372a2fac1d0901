"""Known bugs of activations. [spec 16]"""

from functools import partial

import numpy as np

from pegasusx_ref.golden.feed_forward import ACTIVATIONS
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.diagnosis.neighbour_bugs import other_inputs, parameter_place
from pegasusx_ref.verification.diagnosis.rounded_operands import COMMON, Rounding
from pegasusx_ref.verification.diagnosis.row_variants import RowVariants, screened, whole


def logistic(x: np.ndarray) -> np.ndarray:
    """Compute 1 / (1 + exp(-x)) without overflow."""
    found: np.ndarray = 0.5 * (1 + np.tanh(0.5 * x))
    return found


OTHER_ACTIVATIONS: dict[str, Rounding] = {
    "quick_gelu": lambda x: x * logistic(1.702 * x),
    "the square of relu": lambda x: np.maximum(x, 0) ** 2,
    "leaky relu with slope 0.01": lambda x: np.where(x < 0, 0.01 * x, x),
    "leaky relu with slope 0.1": lambda x: np.where(x < 0, 0.1 * x, x),
    "leaky relu with slope 0.2": lambda x: np.where(x < 0, 0.2 * x, x),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
    "softplus": lambda x: np.logaddexp(0, x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "tanh": np.tanh,
    "a sigmoid": logistic,
}


def activation_bugs(op: FailedOperation) -> Variants:
    """Compute another activation, or none, or of another input."""
    (x,), name = op.inputs, op.settings["name"]
    right = ACTIVATIONS[name]
    others = {other: ACTIVATIONS[other] for other in ("relu", "gelu", "gelu_new", "silu")} | OTHER_ACTIVATIONS
    found: RowVariants = {
        f"the activation is {other}, not {name}": partial(lambda function, rows: function(rows(x)), function)
        for other, function in others.items()
        if function is not right
    }
    found["the activation is missing"] = lambda rows: rows(x)
    found["the activation is applied twice"] = lambda rows: right(right(rows(x)))
    neighbours: RowVariants = {
        f"its input is {other}": partial(lambda tensor, rows: right(rows(tensor)), tensor)
        for other, tensor in other_inputs(op).items()
    }
    bias = op.layer.weights.get(f"{parameter_place(op.name).removesuffix('activation')}fc1.bias")
    if bias is not None:
        found["the bias is added after the activation"] = lambda rows: right(rows(x) - bias) + bias
    for dtype, to in COMMON.items():
        neighbours[f"its input is rounded to {dtype}"] = partial(lambda to, rows: right(to(rows(x))), to)
    if op.name not in op.layer.tensors:
        return whole(found)
    return screened(op, lambda rows: right(rows(x)), found | neighbours)
