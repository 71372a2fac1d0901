"""Known bugs of the projections of attention: the order of heads and of fused matrices. [spec 16]"""

import re
from functools import partial

import numpy as np

from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden.attention import merge_heads, split_heads
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.diagnosis.neighbour_bugs import parameter_place
from pegasusx_ref.verification.diagnosis.row_variants import Rows, RowVariants


def head_order_bugs(op: FailedOperation) -> RowVariants:
    """Compute queries, keys or values with the rows of the matrices in another order."""
    match = re.search(r"\.([qkv])_proj$", op.name)
    if match is None:
        return {}
    (x,), weight, H = op.inputs, op.settings["weight"], op.num_heads
    D, place = len(weight), parameter_place(op.name).rpartition(".")[0]

    def with_rows(order: np.ndarray, matrix: np.ndarray, rows: Rows) -> np.ndarray:
        return linear(rows(x), matrix[order])

    own = np.arange(D)
    found: RowVariants = {
        "rows of the weight are in the order of rotary halves: even features of a head first": partial(
            with_rows, own.reshape(H, -1, 2).swapaxes(1, 2).ravel(), weight
        ),
        "rows of the weight are in the order of interleaved rotary halves": partial(
            with_rows, own.reshape(H, 2, -1).swapaxes(1, 2).ravel(), weight
        ),
        "heads are in the order (F, H), not (H, F)": partial(with_rows, own.reshape(H, -1).T.ravel(), weight),
        "heads are in the order (H, F), where the weight has (F, H)": partial(
            with_rows, own.reshape(-1, H).T.ravel(), weight
        ),
    }
    for parts in ("qkv", "kv"):
        if match.group(1) not in parts:
            continue
        # A fused matrix has the parts one after the other, or a part of each in turn for every head.
        n, number = len(parts), parts.index(match.group(1))
        fused = np.concatenate([dense(op.layer.weights[f"{place}.{part}_proj.weight"], x.dtype) for part in parts])
        by_part = np.arange(n * D).reshape(n, H, -1)
        words = f"the fused matrix of {', '.join(parts)} is cut as {{}}, not {{}}"
        as_heads, as_parts = f"(H, {n}, F)", f"({n}, H, F)"
        cut = by_part.reshape(H, n, -1)[:, number].ravel()
        found[words.format(as_heads, as_parts)] = partial(with_rows, cut, fused)
        cut = by_part.swapaxes(0, 1).reshape(n, -1)[number]
        found[words.format(as_parts, as_heads)] = partial(with_rows, cut, fused)
    return found


def output_projection_bugs(op: FailedOperation) -> Variants:
    """Compute the output projection of heads that are merged wrongly."""
    if not op.name.endswith(".out_proj"):
        return {}
    (x,), weight, H = op.inputs, op.settings["weight"], op.num_heads
    return {
        "heads are merged without the transposition from (B, H, T, F) to (B, T, H, F)": lambda: linear(
            split_heads(x, H).reshape(x.shape), weight
        ),
        "heads are merged as (F, H), not (H, F)": lambda: linear(
            split_heads(x, H).transpose(0, 2, 3, 1).reshape(x.shape), weight
        ),
        "heads are merged in the reverse order": lambda: linear(merge_heads(split_heads(x, H)[:, ::-1]), weight),
    }


def cross_attention_bugs(op: FailedOperation) -> Variants:
    """Compute keys or values of cross-attention for other tokens."""
    if not re.search(r"encoder_attn\.[kv]_proj$", op.name):
        return {}
    (x,), weight, G = op.inputs, op.settings["weight"], op.layer.config.num_global_tokens
    of_globals = np.full((x.shape[0], G, len(weight)), np.nan)  # unknown: not compared
    bug = "cross-attention sees the global tokens too, {} the others"
    return {
        bug.format("before"): lambda: np.concatenate([of_globals, linear(x, weight)], axis=1),
        bug.format("after"): lambda: np.concatenate([linear(x, weight), of_globals], axis=1),
    }
