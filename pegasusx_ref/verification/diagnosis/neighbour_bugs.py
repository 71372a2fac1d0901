"""Known bugs of wiring: an operation reads a neighbouring tensor in place of its own input. [spec 16]"""

import re
from collections.abc import Iterator

import numpy as np

from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general, numbers_in
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, LayerContext

BEFORE = ("input", "output", "embeddings", "embed_global", "out_proj", "residual", "fc1")  # what they are computed from
READS_WIDE = ("activation", "fc2")  # operations on rows of the feed-forward sublayer's width


def other_inputs(op: FailedOperation) -> dict[str, np.ndarray]:
    """Collect the candidate's tensors that a position-wise operation could read by mistake, by name.

    Where the candidate does not show the right input, those that it is computed from are left to bugs of that
    computation.
    """
    letters = TRACE_POINTS[general(op.name)][:-1] + ("M" if op.name.endswith(READS_WIDE) else "D")
    found = streams(op.layer, op.name, letters, op.inputs[0].shape)
    return {name: x for name, x in found.items() if is_input_shown(op) or not name.endswith(BEFORE)}


def is_input_shown(op: FailedOperation) -> bool:
    """Return whether the candidate shows what a position-wise operation reads."""
    own = own_input(op.name)
    return own == "" or own in op.layer.tensors


def own_input(name: str) -> str:
    """Return the name of the tensor that a position-wise operation reads; "" where it has none."""
    place, _, part = name.rpartition(".")
    is_encoder, sublayer = name.startswith("encoder"), place.rpartition(".")[2]
    if re.fullmatch(r"[qkv]_proj", part):
        if is_encoder:
            return f"{place.replace('self_attn.', '')}.self_attn_layer_norm"
        is_cross = sublayer == "encoder_attn" and part != "q_proj"
        return "encoder.layer_norm" if is_cross else f"{place}_layer_norm"
    last = "self_attn_residual" if is_encoder else "encoder_attn_residual"
    within = {"fc1": "final_layer_norm", "fc2": "activation", "activation": "fc1", "final_layer_norm": last}
    within |= {"encoder_attn_layer_norm": "self_attn_residual", "self_attn_layer_norm": "input"}
    return "decoder.layer_norm" if name == "lm_head" else f"{place}.{within[part]}" if part in within else ""


def parameter_place(name: str) -> str:
    """Return the place of the parameters that compute a tensor: both streams of an encoder layer share most of them."""
    name = name.replace(".globals.self_attn_layer_norm", ".global_self_attn_layer_norm")
    return re.sub(r"\.(tokens|globals)\.", ".", name)


def streams(layer: LayerContext, name: str, letters: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Collect the candidate's earlier tensors of a shape: those of a tensor's layer, and those between layers.

    Args:
        layer: the model, and the candidate's tensors.
        name: of the tensor.
        letters: of the shape, as in `TRACE_POINTS`.
        shape: that the tensors must have.
    """
    own = execution_order(name)
    earlier = (other for other in nearby(layer, name, letters) if execution_order(other) < own)
    found = {other: shown_or_summed(layer, other) for other in earlier}
    return {other: x for other, x in found.items() if x is not None and x.shape == shape}


def shown_or_summed(layer: LayerContext, name: str) -> np.ndarray | None:
    """Return the candidate's tensor; a residual sum that it does not show is computed from its terms."""
    shown, (place, _, part) = layer.tensors.get(name), name.rpartition(".")
    if shown is not None or not part.endswith("_residual"):
        return shown
    earlier = "input" if part == "self_attn_residual" else "self_attn_residual"
    stream = re.sub(r"(\.tokens|\.globals|)$", rf".{part.removesuffix('_residual')}\1", place, count=1)
    before, update = shown_or_summed(layer, f"{place}.{earlier}"), layer.tensors.get(f"{stream}.out_proj")
    return None if before is None or update is None or before.shape != update.shape else before + update


def execution_order(name: str) -> tuple[int, ...]:
    """Return a sort key of trace points: the parts of a layer follow each other, then those of the next layer."""
    point, points = general(name), list(TRACE_POINTS)
    start = point.partition(".{i}")[0]
    return next(n for n, other in enumerate(points) if other.startswith(start)), *numbers_in(name), points.index(point)


def nearby(layer: LayerContext, name: str, letters: str) -> Iterator[str]:
    """Yield names of trace points with these letters: of the same layer, and between layers, by side."""
    own = re.match(r"(\w+\.layers\.)(\d+)\.", name)
    for point, axes in TRACE_POINTS.items():
        if axes != letters:
            continue
        if own and point.startswith(own.group(1)) and "{n}" not in point:
            yield point.replace("{i}", own.group(2))
        elif "{i}" not in point:
            yield point
    for side, count in (("encoder", layer.config.encoder_layers), ("decoder", layer.config.decoder_layers)):
        for point in (f"{side}.layers.{{i}}.{stream}output" for stream in ("", "tokens.", "globals.")):
            if TRACE_POINTS.get(point) == letters:
                yield from (point.replace("{i}", str(i)) for i in range(count))
