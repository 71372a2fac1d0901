"""Known bugs before the first layer: tokens, positions, global tokens. [spec 16]"""

import math
import re
from functools import partial

import numpy as np

from pegasusx_ref.golden.embedding import sinusoidal_positions
from pegasusx_ref.verification.known_bugs.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.known_bugs.quantization_bugs import quantized_table_bugs

BASES = (100, 1000, 5000, 20000, 50000, 100000, 500000, 1000000)


def embed_tokens_bugs(op: FailedOperation) -> Variants:
    """Compute embeddings with a wrong scale, or of wrong tokens."""
    ids, table, scale = (op.settings[n] for n in ("ids", "table", "scale"))
    root, start = math.sqrt(table.shape[1]), op.layer.config.decoder_start_token_id
    found = quantized_table_bugs(op)
    if op.name == "encoder.embed_global":
        found["global tokens are in the reverse order"] = lambda: table[ids[:, ::-1]] * scale
    else:
        is_padding = ids[..., None] == op.layer.config.pad_token_id
        found["padding's embedding is 0"] = lambda: np.where(is_padding, 0, table[ids]) * scale
    for step, direction in ((1, "large"), (-1, "small")):
        shifted = np.clip(ids + step, 0, len(table) - 1)
        found[f"ids are one too {direction}"] = partial(lambda shifted: table[shifted] * scale, shifted)
    if op.name.startswith("decoder"):
        later = np.concatenate([np.full_like(ids[:, :1], start), ids[:, :-1]], axis=1)
        earlier = np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)
        unknown = np.where(np.arange(ids.shape[1]) < ids.shape[1] - 1, 0, np.nan)[:, None]  # the last has no successor
        found["target tokens are shifted right once more: they are decoder inputs already"] = lambda: (
            table[later] * scale
        )
        found["target tokens are labels: they are not shifted right"] = lambda: table[earlier] * scale + unknown
    if scale == 1:
        return found | {"embeddings are scaled by sqrt(D)": lambda: table[ids] * root}
    return found | {
        "the embedding scale is missing": lambda: table[ids],
        "the embedding scale is applied twice": lambda: table[ids] * scale**2,
        "embeddings are divided by sqrt(D)": lambda: table[ids] / root,
    }


def add_positions_bugs(op: FailedOperation) -> Variants:
    """Add wrong positions."""
    (x,), start = op.inputs, op.settings["start"]
    _, T, D = x.shape
    right, places = sinusoidal_positions(start, T, D), np.arange(start, start + T)[:, None]
    sines, cosines = right[:, : D // 2], right[:, D // 2 :]
    steps = np.arange(D // 2)

    def waves(angles: np.ndarray) -> np.ndarray:
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    found: Variants = {
        "positions are missing": lambda: x,
        "positions start one too late": lambda: x + sinusoidal_positions(start + 1, T, D),
        "positions start two too late": lambda: x + sinusoidal_positions(start + 2, T, D),
        "sines and cosines are interleaved": lambda: x + np.stack([sines, cosines], axis=2).reshape(T, D),
        "cosines come before sines": lambda: x + np.concatenate([cosines, sines], axis=1),
        "frequencies are spaced by 1 / (D/2), not 1 / (D/2 - 1)": lambda: (
            x + waves(places * 10000.0 ** (-steps / (D // 2)))
        ),
        "positions are added twice": lambda: x + 2 * right,
        "positions are scaled by sqrt(D), as tokens are": lambda: x + math.sqrt(D) * right,
        "all positions are the first one": lambda: x + right[:1],
    }
    for base in BASES:
        found[f"the base of the frequencies is {base}, not 10000"] = partial(
            lambda base: x + waves(places * float(base) ** (-steps / (D // 2 - 1))), base
        )
    mask = op.layer.source_mask_BT
    if op.name.startswith("encoder") and (np.diff(mask.astype(int), axis=1) > 0).any():  # padding before tokens
        counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[..., None]
        found["positions count real tokens only, not padding"] = lambda: (
            x + waves(counted * 10000.0 ** (-steps / (D // 2 - 1)))
        )
    return found


def pass_on_bugs(op: FailedOperation) -> Variants:
    """Return what a layer starts with where it does not start with the previous layer's output."""
    if not re.search(r"\.globals\.input$", op.name):
        return {}
    (x,) = op.inputs
    table = op.layer.weights["encoder.embed_global.weight"]
    return {"global tokens are not updated: each layer begins with their embeddings": lambda: x * 0 + table}
