"""Bugs of stored tensors: another layout, or another tensor under a tensor's name. [spec 16]"""

import re
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np

from pegasusx_ref.golden.attention import merge_heads, split_heads
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general
from pegasusx_ref.verification.diagnosis.failed_operation import LayerContext
from pegasusx_ref.verification.diagnosis.fitted_bugs import explains
from pegasusx_ref.verification.diagnosis.neighbour_bugs import nearby
from pegasusx_ref.verification.diagnosis.rounded_operands import to_bfloat16_by_truncation
from pegasusx_ref.verification.verdicts import Failure

Tensors = Iterator[tuple[str, np.ndarray]]  # a bug in words, and the tensor with it
ANOTHER = 0.1  # the least error of another tensor, relative to the right one's size


def stored_bugs(failure: Failure, layer: LayerContext) -> Tensors:
    """Yield the right tensor in other layouts, and other tensors of the candidate.

    Args:
        failure: a wrong tensor.
        layer: the model, and the candidate's tensors.
    """
    right = np.where(failure.valid[..., None], failure.estimate.value, np.nan)
    found, H = failure.candidate, layer.config.encoder_attention_heads
    worst: tuple[Any, ...] = ()
    if found.shape == right.shape:
        worst = np.unravel_index(np.where(np.isnan(found - right), -1, np.abs(found - right)).argmax(), found.shape)
    for words, wrong in layouts(right, H):
        # Numbers of padding are unknown; the candidate's own stand in, but not for its worst one.
        if wrong.shape != found.shape or np.array_equal(wrong, right, equal_nan=True):
            continue
        is_known = ~np.isnan(wrong)
        if not worst or is_known[worst]:
            yield words, np.where(is_known, wrong, found)
    truncated = to_bfloat16_by_truncation(right)
    if found.shape == right.shape and explains(*(x[failure.valid] for x in (found, right, truncated))):
        yield "its numbers are truncated to bfloat16, not rounded", truncated
    if found.shape == right.shape and is_large(failure):
        for name in stored_names(failure.check.name, layer):
            other = layer.tensors.get(name)
            if other is not None and other.shape == found.shape:
                yield f"the tensor stored here is {name}", np.where(failure.valid[..., None], other, np.nan)


def layouts(right: np.ndarray, H: int) -> Tensors:
    """Yield a tensor in other layouts."""
    letters = "BHTF" if right.ndim == 4 else "BTD"
    yield "batch rows are one too late", np.roll(right, 1, axis=0)
    yield "batch rows are one too early", np.roll(right, -1, axis=0)
    yield "rows are in the reverse order", right[..., ::-1, :]
    yield "features are in the reverse order", right[..., ::-1]
    if right.ndim == 3 and right.shape[2] % H == 0:
        heads = split_heads(right, H)
        yield "heads are not merged: (B, H, T, F) in the shape (B, T, D)", heads.reshape(right.shape)
        yield "heads are not merged: its axes are (B, H, T, F)", heads
        yield "heads are not merged: its axes are (B, T, H, F)", heads.swapaxes(1, 2)
        yield "features are in the order (F, H), not (H, F)", heads.transpose(0, 2, 3, 1).reshape(right.shape)
    elif right.ndim == 4:
        yield "heads are merged: its axes are (B, T, D)", merge_heads(right)
        yield "heads are in the reverse order", right[:, ::-1]
    yield "its axes are (BT, D): batch rows are joined", right.reshape(-1, right.shape[-1])
    if len(right) == 1:
        yield "the batch axis is missing", right[0]
    for axes in list(permutations(range(right.ndim)))[1:]:
        moved, words = right.transpose(axes), ", ".join(letters[i] for i in axes)
        yield f"its axes are ({words}), not ({', '.join(letters)})", moved
        yield f"its axes are ({words}) in the shape ({', '.join(letters)})", moved.reshape(right.shape)


def is_large(failure: Failure) -> bool:
    """Return whether the error is too large for rounding of any kind: only then another tensor may explain it."""
    value = failure.estimate.value[failure.valid]
    error = failure.candidate[failure.valid] - value
    with np.errstate(all="ignore"):
        return bool(np.linalg.norm(error) >= ANOTHER * np.linalg.norm(value))


def stored_names(name: str, layer: LayerContext) -> Iterator[str]:
    """Yield names of tensors of the same axes: around the tensor's layer, of other blocks, of other layers."""
    point, letters = general(name), TRACE_POINTS[general(name)]
    others = list(nearby(layer, name, letters))
    if own := re.match(r"(\w+\.layers\.)(\d+)\.(.*\.(?:local\.\d+\.)?)(\w+)$", name):
        place, number, inside, part = own.groups()
        others += [f"{place}{number}.{inside}{other}" for other in ("scores", "probs") if part in ("scores", "probs")]
        count = layer.config.encoder_layers if place.startswith("encoder") else layer.config.decoder_layers
        others += [re.sub(r"layers\.\d+", f"layers.{i}", name, count=1) for i in range(count)]
        if "{n}" in point:
            num_blocks = -(-layer.source_mask_BT.shape[1] // layer.config.block_size) + 1
            others += [re.sub(r"local\.\d+", f"local.{n}", name) for n in range(num_blocks)]
    yield from (other for other in dict.fromkeys(others) if other != name)
