"""Known bugs of residual sums. [spec 16]"""

import math
from functools import partial

import numpy as np

from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.diagnosis.neighbour_bugs import streams
from pegasusx_ref.verification.diagnosis.row_variants import Rows, RowVariants, screened, whole


def add_bugs(op: FailedOperation) -> Variants:
    """Compute a wrong residual sum."""
    x, update = op.inputs
    config, (place, _, own) = op.layer.config, op.name.rpartition(".")
    found: Variants = {
        "the residual is missing": lambda: update,
        "the update is missing": lambda: x,
        "the update is subtracted": lambda: x - update,
        "the update is added twice": lambda: x + 2 * update,
        "the update is halved": lambda: x + update / 2,
        "the residual is added twice": lambda: 2 * x + update,
        "the sum is divided by sqrt(2)": lambda: (x + update) / math.sqrt(2),
        "the sum is halved": lambda: (x + update) / 2,
    }
    root = math.sqrt(2 * (config.encoder_layers if op.name.startswith("encoder") else config.decoder_layers))
    factors = {"sqrt(D)": math.sqrt(x.shape[-1]), "sqrt(2)": math.sqrt(2), "the root of the number of sublayers": root}
    for name, factor in factors.items():
        found[f"the residual is multiplied by {name}"] = partial(lambda c: c * x + update, factor)
        found[f"the update is divided by {name}"] = partial(lambda c: x + update / c, factor)
    layer_input, normed = (op.layer.tensors.get(f"{place}.{name}") for name in ("input", "final_layer_norm"))
    if own == "output" and layer_input is not None:
        found["the layer changes nothing: its output is its input"] = lambda: layer_input
    if own == "output" and normed is not None:
        found["the residual is taken after the LayerNorm"] = lambda: normed + update
    others = wrong_terms(op)
    return found | (screened(op, lambda rows: rows(x) + rows(update), others) if is_shown(op) else whole(others))


def wrong_terms(op: FailedOperation) -> RowVariants:
    """Compute the sum with another stream as the residual or as the update."""
    x, update = op.inputs

    def with_residual(other: np.ndarray, rows: Rows) -> np.ndarray:
        total: np.ndarray = rows(other) + rows(update)
        return total

    def with_update(other: np.ndarray, rows: Rows) -> np.ndarray:
        total: np.ndarray = rows(x) + rows(other)
        return total

    found: RowVariants = {}
    for name, other in streams(op.layer, op.name, TRACE_POINTS[general(op.name)], x.shape).items():
        found[f"the residual is {name}"] = partial(with_residual, other)
        found[f"the update is {name}"] = partial(with_update, other)
    return found


def is_shown(op: FailedOperation) -> bool:
    """Return whether the candidate shows the result."""
    return op.name in op.layer.tensors
