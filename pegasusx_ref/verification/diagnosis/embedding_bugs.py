"""Known bugs before the first layer: tokens, positions, global tokens. [spec 16]"""

import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np

from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden.embedding import sinusoidal_positions
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.diagnosis.quantization_bugs import quantized_table_bugs
from pegasusx_ref.verification.diagnosis.rounded_operands import COMMON

TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)  # of tables of positions
NUM_LOOKED_UP = 12
NUM_STEPS = 3  # different distances between the right ids and those looked up
NEAR = 0.1  # relative distance of two rows of the table that are the same
BASES = (100, 1000, 5000, 20000, 50000, 100000, 500000, 1000000)


def embed_tokens_bugs(op: FailedOperation) -> Variants:
    """Compute embeddings with a wrong scale, of wrong tokens, or from another table."""
    ids, table, scale = (op.settings[n] for n in ("ids", "table", "scale"))
    found = quantized_table_bugs(op) | scale_bugs(table[ids], scale)
    found |= global_token_bugs(op) if op.name == "encoder.embed_global" else token_bugs(op)
    found |= id_bugs(op)
    tables = {name: op.layer.weights[name] for name in TABLES if name in op.layer.weights}
    for name, other in {id(other): (name, other) for name, other in reversed(tables.items())}.values():  # tied: one
        if other.shape[0] > ids.max() and other.shape[1] == table.shape[1]:
            rows = dense(other, table.dtype)[ids]
            found[f"the table is {name.removesuffix('.weight')}"] = partial(np.multiply, rows, scale)
    for dtype, to in COMMON.items():
        found[f"the table is rounded to {dtype}"] = partial(lambda to: to(table[ids]) * scale, to)
    return found


def scale_bugs(rows: np.ndarray, scale: float) -> Variants:
    """Scale the rows of the table wrongly."""
    root = math.sqrt(rows.shape[-1])
    if scale == 1:
        return {"embeddings are scaled by sqrt(D)": lambda: rows * root}
    return {
        "the embedding scale is missing": lambda: rows,
        "the embedding scale is applied twice": lambda: rows * scale**2,
        "embeddings are divided by sqrt(D)": lambda: rows / root,
        "the embedding scale is rounded to an integer": lambda: rows * round(scale),
        "the embedding scale is cut to an integer": lambda: rows * int(scale),
        "the embedding scale is rounded to bfloat16": lambda: rows * COMMON["bfloat16"](np.array(scale)),
        "the embedding scale is rounded to float16": lambda: rows * COMMON["float16"](np.array(scale)),
    }


def token_bugs(op: FailedOperation) -> Variants:
    """Compute embeddings of tokens that are shifted or replaced."""
    ids, table, scale = (op.settings[n] for n in ("ids", "table", "scale"))
    start, is_padding = op.layer.config.decoder_start_token_id, ids[..., None] == op.layer.config.pad_token_id
    found: Variants = {"padding's embedding is 0": lambda: np.where(is_padding, 0, table[ids]) * scale}
    if op.name.startswith("decoder"):
        later = np.concatenate([np.full_like(ids[:, :1], start), ids[:, :-1]], axis=1)
        earlier = np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)
        unknown = np.where(np.arange(ids.shape[1]) < ids.shape[1] - 1, 0, np.nan)[:, None]  # the last has no successor
        found["target tokens are shifted right once more: they are decoder inputs already"] = lambda: (
            table[later] * scale
        )
        found["target tokens are labels: they are not shifted right"] = lambda: table[earlier] * scale + unknown
    return found


def global_token_bugs(op: FailedOperation) -> Variants:
    """Compute other first states of the global tokens."""
    ids, table = op.settings["ids"], op.settings["table"]
    G, D = table.shape
    return {
        "global tokens are in the reverse order": lambda: table[ids[:, ::-1]],
        "all global tokens are the first one": lambda: table[ids[:, :1]] + 0 * table[ids],
        "global tokens are their mean": lambda: table.mean(axis=0) + 0 * table[ids],
        "global tokens get positions": lambda: table[ids] + sinusoidal_positions(0, G, D),
        "global tokens are scaled and get positions": lambda: table[ids] * math.sqrt(D) + sinusoidal_positions(0, G, D),
    }


def id_bugs(op: FailedOperation) -> Variants:
    """Compute embeddings of other ids, by rules that follow from a few ids that the candidate embeds."""
    ids, table, scale = (op.settings[n] for n in ("ids", "table", "scale"))
    candidate, steps = shown_embeddings(op), {-1, 1}
    rules: dict[str, np.ndarray] = {f"ids are cut to {bits} bits": ids % 2**bits for bits in (7, 8, 15, 16)}
    if candidate is not None and candidate.shape == (*ids.shape, table.shape[1]):
        own, embedded = looked_up(ids, table, candidate / scale)
        steps |= {int(step) for step in (embedded - own)[:NUM_STEPS]} - {0}
        for token in {int(token) for token in embedded[embedded != own]} if (embedded != own).any() else ():
            error = np.linalg.norm(candidate / scale - table[token], axis=-1)
            is_replaced = (error < NEAR * np.linalg.norm(table[token])) & (ids != token)
            first = ids[is_replaced].min(initial=len(table))
            is_clipped = token < first and not ((ids > token) & (ids < first)).any()
            words = f"are clipped at {token}" if is_clipped else f"from {first} on are replaced by {token}"
            rules[f"ids {words}"] = np.where(ids < first, ids, token)
    for step in sorted(steps, key=abs):
        words = f"{'one' if abs(step) == 1 else abs(step)} too {'large' if step > 0 else 'small'}"
        rules[f"ids are {words}"] = np.clip(ids + step, 0, len(table) - 1)
    return {rule: partial(lambda other: table[other] * scale, other) for rule, other in rules.items()}


def shown_embeddings(op: FailedOperation) -> np.ndarray | None:
    """Return the candidate's embeddings; without the positions, where it shows only the sum."""
    shown, total = (op.layer.tensors.get(name) for name in (op.name, op.name.replace("embed_tokens", "embeddings")))
    if shown is not None or total is None or total.ndim != 3:
        return shown
    tokens: np.ndarray = total - sinusoidal_positions(0, *total.shape[1:])
    return tokens


def looked_up(ids: np.ndarray, table: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return some of the ids, and those whose rows of the table are nearest to the candidate's."""
    own, places = np.unique(ids, return_index=True)
    chosen = np.unique(np.linspace(0, len(own) - 1, NUM_LOOKED_UP).astype(int))
    shown = np.nan_to_num(rows.reshape(-1, table.shape[1])[places[chosen]])
    nearest: np.ndarray = np.argmin((table**2).sum(axis=1) - 2 * shown @ table.T, axis=1)
    return own[chosen], nearest


def add_positions_bugs(op: FailedOperation) -> Variants:
    """Add wrong positions."""
    (x,), config = op.inputs, op.layer.config
    B, T, D = x.shape
    places, steps = np.arange(T) + op.settings["start"], np.arange(D // 2)
    frequencies = 10000.0 ** (-steps / (D // 2 - 1))
    angles = places[:, None] * frequencies

    def at(other: np.ndarray, frequencies: np.ndarray = frequencies) -> np.ndarray:
        angles = other[..., None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    def added(positions: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: x + positions

    def mixed(first: np.ndarray, second: np.ndarray) -> Callable[[], np.ndarray]:
        return added(np.stack([first, second], axis=2).reshape(T, D))

    sines, cosines, right = np.sin(angles), np.cos(angles), at(places)
    found: Variants = {
        "positions are missing": lambda: x,
        "sines and cosines are interleaved": mixed(sines, cosines),
        "sines and cosines are interleaved, cosines first": mixed(cosines, sines),
        "cosines come before sines": added(np.concatenate([cosines, sines], axis=1)),
        "all positions are sines": added(np.concatenate([sines, sines], axis=1)),
        "positions are subtracted": added(-right),
        "positions are added twice": added(2 * right),
        "positions are scaled by sqrt(D), as tokens are": added(math.sqrt(D) * right),
        "positions are divided by sqrt(D)": added(right / math.sqrt(D)),
        "positions replace the tokens": lambda: right + 0 * x,
        "all positions are the first one": added(right[:1]),
        "positions count batch rows, not tokens": added(at(np.arange(B))[:, None]),
        "positions are in the reverse order": added(right[::-1]),
        "angles are in degrees": added(at(places, np.deg2rad(frequencies))),
        "the frequencies are in the reverse order": added(at(places, frequencies[::-1])),
        "frequencies are spaced by 1 / (D/2), not 1 / (D/2 - 1)": added(at(places, 10000.0 ** (-steps / (D // 2)))),
        "frequencies are spaced by 1 / D, not 1 / (D/2 - 1)": added(at(places, 10000.0 ** (-steps / D))),
    }
    interleaved = 10000.0 ** (-2 * (np.arange(D) // 2) / D)
    all_angles = places[:, None] * interleaved
    found["sines and cosines are interleaved, and frequencies spaced by 2 / D"] = added(
        np.where(np.arange(D) % 2, np.cos(all_angles), np.sin(all_angles))
    )
    G, K = config.num_global_tokens, config.block_size
    for start in sorted({-1, 1, 2, 3, config.pad_token_id + 1, G, G + 1, K, T}, key=abs):
        side, words = "late" if start > 0 else "early", {1: "one", 2: "two"}.get(abs(start), str(abs(start)))
        found[f"positions start {words} too {side}"] = added(at(places + start))
    for size in sorted({K // 2, K, 2 * K, G + K, *LENGTHS}):
        if 1 < size < T:
            found[f"positions start again after {size} tokens"] = added(at(places % size))
            found[f"positions end at {size - 1}: later tokens have the last one"] = added(
                at(np.minimum(places, size - 1))
            )
    for base in BASES:
        found[f"the base of the frequencies is {base}, not 10000"] = added(
            at(places, float(base) ** (-steps / (D // 2 - 1)))
        )
    mask = op.layer.source_mask_BT
    if op.name.startswith("encoder") and (np.diff(mask.astype(int), axis=1) > 0).any():  # padding before tokens
        counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        found["positions count real tokens only, not padding"] = added(at(counted))
    return found


def pass_on_bugs(op: FailedOperation) -> Variants:
    """Return what a layer starts with where it does not start with the previous layer's output."""
    if not re.search(r"\.globals\.(in|out)put$", op.name):
        return {}
    (x,) = op.inputs
    table = op.layer.weights["encoder.embed_global.weight"]
    return {"global tokens are not updated: each layer begins with their embeddings": lambda: x * 0 + table}
