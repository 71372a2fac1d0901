"""Mistakes before the first layer: tokens, positions, global tokens. [spec 16]"""

import math
import re
from functools import partial

import numpy as np

from pegasusx_ref.golden.embedding import sinusoidal_positions
from pegasusx_ref.verification.hypotheses.case import Case, Variants

BASES = (100, 1000, 5000, 20000, 50000, 100000, 500000, 1000000)


def of_embed_tokens(case: Case) -> Variants:
    """Another scale of the embeddings, or other tokens."""
    ids, table, scale = (case.settings[n] for n in ("ids", "table", "scale"))
    root, start = math.sqrt(table.shape[1]), case.around.config.decoder_start_token_id
    found: Variants = {}
    if case.name == "encoder.embed_global":
        found["global tokens are in the reverse order"] = lambda: table[ids[:, ::-1]] * scale
    else:
        is_padding = ids[..., None] == case.around.config.pad_token_id
        found["padding's embedding is 0"] = lambda: np.where(is_padding, 0, table[ids]) * scale
    for step, what in ((1, "large"), (-1, "small")):
        shifted = np.clip(ids + step, 0, len(table) - 1)
        found[f"ids are one too {what}"] = partial(lambda shifted: table[shifted] * scale, shifted)
    if case.name.startswith("decoder"):
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


def of_add_positions(case: Case) -> Variants:
    """Other positions."""
    (x,), start = case.inputs, case.settings["start"]
    _, T, D = x.shape
    here, places = sinusoidal_positions(start, T, D), np.arange(start, start + T)[:, None]
    sines, cosines = here[:, : D // 2], here[:, D // 2 :]
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
        "positions are added twice": lambda: x + 2 * here,
        "positions are scaled by sqrt(D), as tokens are": lambda: x + math.sqrt(D) * here,
        "all positions are the first one": lambda: x + here[:1],
    }
    for base in BASES:
        found[f"the base of the frequencies is {base}, not 10000"] = partial(
            lambda base: x + waves(places * float(base) ** (-steps / (D // 2 - 1))), base
        )
    mask = case.around.source_mask_BT
    if case.name.startswith("encoder") and (np.diff(mask.astype(int), axis=1) > 0).any():  # padding before tokens
        counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[..., None]
        found["padding has no positions: real tokens are counted"] = lambda: (
            x + waves(counted * 10000.0 ** (-steps / (D // 2 - 1)))
        )
    return found


def of_what_is_passed_on(case: Case) -> Variants:
    """A layer that begins with something else than the one before it ended with."""
    if not re.search(r"\.globals\.input$", case.name):
        return {}
    (x,) = case.inputs
    table = case.around.weights["encoder.embed_global.weight"]
    return {"global tokens are not updated: each layer begins with their embeddings": lambda: x * 0 + table}
