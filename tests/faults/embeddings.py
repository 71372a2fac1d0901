"""Faults before the first layer: tokens, positions, global tokens."""

from typing import Any

import numpy as np

from faults.fault import FINE, LOW, ROOT, Fault, exact_positions
from faults.injection import (
    altered,
    at,
    attribute,
    computing,
    parameter,
    positions,
    returning,
    torch,
)
from faults.rounding import multiples
from pegasusx_ref.golden.embedding import sinusoidal_positions


def interleaved(positions: np.ndarray) -> np.ndarray:
    return np.stack(np.split(positions, 2, axis=1), axis=2).reshape(positions.shape)


def waves(angles: np.ndarray) -> np.ndarray:
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def spaced(T: int, D: int, base: float, steps: int) -> np.ndarray:
    return waves(np.arange(T)[:, None] * base ** (-np.arange(D // 2) / steps))


def batch_rows(B: int, T: int, D: int) -> Any:
    """Return the positions of batch rows (B, T, D)."""
    return torch.from_numpy(sinusoidal_positions(0, B, D))[:, None].expand(B, T, D)


def zero_at(index: Any, x: Any) -> Any:
    x = x.clone()
    x[index] = 0
    return x


EMBEDDING = [
    Fault(
        "the embedding scale is missing",
        "encoder.embed_tokens",
        attribute("encoder.embed_tokens", "embed_scale", 1.0),
        diagnosis="the embedding scale is missing",
    ),
    Fault(
        "the embedding scale is applied twice",
        "decoder.embed_tokens",
        attribute("decoder.embed_tokens", "embed_scale", 32.0),
        diagnosis="the embedding scale is applied twice",
    ),
    Fault(
        "the embedding scale is applied to global tokens",
        "encoder.embed_global",
        returning("encoder.embed_global", lambda x, _: x * ROOT),
        diagnosis="embeddings are scaled by sqrt(D)",
    ),
    Fault(
        "global tokens start in the reverse order",
        "encoder.embed_global",
        returning("encoder.embed_global", lambda x, _: x.flip(1)),
        diagnosis="global tokens are in the reverse order",
    ),
    Fault(
        "padding's embedding is 0",
        "decoder.embed_tokens",
        parameter("decoder.embed_tokens", "weight", lambda table: zero_at(0, table)),
        diagnosis="padding's embedding is 0",
    ),
    Fault(
        "ids are off by one",
        "encoder.embed_tokens",
        altered("encoder.embed_tokens", input_ids=lambda ids: ids - 1),
        diagnosis="ids are one too small",
    ),
    Fault(
        "labels are not shifted: the decoder sees the token that it should predict",
        "decoder.embed_tokens",
        altered("decoder.embed_tokens", input_ids=lambda ids: ids.roll(-1, 1)),
        diagnosis="target tokens are labels: they are not shifted right",
    ),
    Fault(
        "the target is shifted right twice",
        "decoder.embed_tokens",
        altered("decoder.embed_tokens", input_ids=lambda ids: torch.cat([ids[:, :1], ids[:, :-1]], 1)),
        diagnosis="target tokens are shifted right once more: they are decoder inputs already",
    ),
    Fault(
        "the embedding scale is rounded to bfloat16",
        "encoder.embed_tokens",
        attribute("encoder.embed_tokens", "embed_scale", float(torch.tensor(ROOT).bfloat16())),
        diagnosis="the embedding scale is rounded to bfloat16",
        seen_in=FINE,
    ),
    Fault(
        "the embedding scale is an integer",
        "decoder.embed_tokens",
        attribute("decoder.embed_tokens", "embed_scale", 5.0),
        diagnosis="the embedding scale is cut to an integer",
    ),
    Fault(
        "embeddings are multiplied by 1.25",
        "encoder.embed_tokens",
        attribute("encoder.embed_tokens", "embed_scale", 1.25 * ROOT),
        diagnosis="tokens are multiplied by 1.25",
    ),
    Fault(
        "ids have an offset of 103, as in the vocabulary of PEGASUS",
        "encoder.embed_tokens",
        altered("encoder.embed_tokens", input_ids=lambda ids: ids - 103),
        diagnosis="ids are 103 too small",
    ),
    Fault(
        "ids are one byte with a sign",
        "decoder.embed_tokens",
        altered("decoder.embed_tokens", input_ids=lambda ids: ids % 128),
        diagnosis="ids are cut to 7 bits",
    ),
    Fault(
        "ids are clipped at 200",
        "encoder.embed_tokens",
        altered("encoder.embed_tokens", input_ids=lambda ids: ids.clamp(max=200)),
        diagnosis="ids are clipped at 200",
    ),
    Fault(
        "late ids are replaced by the unknown token",
        "decoder.embed_tokens",
        altered("decoder.embed_tokens", input_ids=lambda ids: ids.where(ids < 180, 105)),
        diagnosis="ids from 191 on are replaced by 105",
    ),
    Fault(
        "the table is stored in int8, with a scale for each row",
        "encoder.embed_tokens",
        parameter("encoder.embed_tokens", "weight", lambda w: multiples(w, 127).to(w.dtype)),
        diagnosis="the table is rounded to int8 with a scale for each row",
    ),
    Fault(
        "the decoder has a table of its own, less precise",
        "decoder.embed_tokens",
        parameter("decoder.embed_tokens", "weight", lambda w: w.half().to(w.dtype)),
        diagnosis="the table is rounded to float16",
        seen_in=FINE,
    ),
    Fault(
        "global tokens start with 0: their table was not loaded",
        "encoder.embed_global",
        parameter("encoder.embed_global", "weight", torch.zeros_like),
        diagnosis="all its numbers are 0",
    ),
    Fault(
        "global tokens are rows of the token table",
        "encoder.embed_global",
        lambda model: setattr(at(model, "encoder.embed_global"), "weight", at(model, "encoder.embed_tokens").weight),
        diagnosis="the table is shared",
    ),
    Fault(
        "all global tokens start as the first one",
        "encoder.embed_global",
        returning("encoder.embed_global", lambda x, _: x[:, :1].expand_as(x)),
        diagnosis="all global tokens are the first one",
    ),
    Fault(
        "global tokens get positions",
        "encoder.embed_global",
        returning(
            "encoder.embed_global", lambda x, _: x + torch.from_numpy(sinusoidal_positions(0, 4, 32)).to(x.dtype)
        ),
        diagnosis="global tokens get positions",
    ),
]

POSITIONS = [
    Fault(
        "positions are computed in the model's dtype, as in transformers",
        "encoder.embeddings",
        lambda model: delattr(at(model, "encoder.embed_positions"), "forward"),
        diagnosis="positions are computed in low precision",
        seen_in=LOW,
    ),
    Fault(
        "positions start at 1",
        "encoder.embeddings",
        exact_positions("encoder", 1),
        diagnosis="positions start one too late",
    ),
    Fault(
        "sines and cosines are interleaved",
        "encoder.embeddings",
        positions("encoder", lambda T, D: interleaved(sinusoidal_positions(0, T, D))),
        diagnosis="sines and cosines are interleaved",
    ),
    Fault(
        "cosines come first",
        "decoder.embeddings",
        positions("decoder", lambda T, D: np.roll(sinusoidal_positions(0, T, D), D // 2, axis=1)),
        diagnosis="cosines come before sines",
    ),
    Fault(
        "frequencies are spaced by 1 / (D/2)",
        "decoder.embeddings",
        positions("decoder", lambda T, D: spaced(T, D, 10000.0, D // 2)),
        diagnosis="frequencies are spaced by 1 / (D/2), not 1 / (D/2 - 1)",
    ),
    Fault(
        "the base is 1000",
        "encoder.embeddings",
        positions("encoder", lambda T, D: spaced(T, D, 1000.0, D // 2 - 1)),
        diagnosis="the base of the frequencies is 1000, not 10000",
    ),
    Fault(
        "positions are missing",
        "encoder.embeddings",
        positions("encoder", lambda T, D: np.zeros((T, D))),
        diagnosis="positions are missing",
    ),
    Fault(
        "the decoder uses position 0 for every token",
        "decoder.embeddings",
        positions("decoder", lambda T, D: np.tile(sinusoidal_positions(0, 1, D), (T, 1))),
        diagnosis="all positions are the first one",
    ),
    Fault(
        "positions start again in each block",
        "encoder.embeddings",
        positions("encoder", lambda T, D: np.tile(sinusoidal_positions(0, 8, D), (4, 1))[:T]),
        diagnosis="positions start again after 8 tokens",
    ),
    Fault(
        "positions end with a table of 16",
        "encoder.embeddings",
        positions("encoder", lambda T, D: sinusoidal_positions(0, T, D)[np.minimum(np.arange(T), 15)]),
        diagnosis="positions end at 15: later tokens have the last one",
    ),
    Fault(
        "positions start after the global tokens",
        "encoder.embeddings",
        exact_positions("encoder", 4),
        diagnosis="positions start 4 too late",
    ),
    Fault(
        "positions are in the reverse order",
        "decoder.embeddings",
        positions("decoder", lambda T, D: sinusoidal_positions(0, T, D)[::-1].copy()),
        diagnosis="positions are in the reverse order",
    ),
    Fault(
        "angles are in degrees",
        "decoder.embeddings",
        positions("decoder", lambda T, D: waves(np.deg2rad(np.arange(T)[:, None] * 10000.0 ** (-np.arange(16) / 15)))),
        diagnosis="angles are in degrees",
    ),
    Fault(
        "the low frequencies come first",
        "decoder.embeddings",
        positions("decoder", lambda T, D: waves(np.arange(T)[:, None] * 10000.0 ** (-np.arange(16)[::-1] / 15))),
        diagnosis="the frequencies are in the reverse order",
    ),
    Fault(
        "positions as in the Transformer of 2017: interleaved, spaced by 2 / D",
        "encoder.embeddings",
        positions("encoder", lambda T, D: interleaved(waves(np.arange(T)[:, None] * 10000.0 ** (-np.arange(16) / 16)))),
        diagnosis="sines and cosines are interleaved, and frequencies spaced by 2 / D",
    ),
    Fault(
        "positions are subtracted",
        "decoder.embeddings",
        positions("decoder", lambda T, D: -sinusoidal_positions(0, T, D)),
        diagnosis="positions are subtracted",
    ),
    Fault(
        "positions are added before the scale",
        "encoder.embeddings",
        positions("encoder", lambda T, D: ROOT * sinusoidal_positions(0, T, D)),
        diagnosis="positions are scaled by sqrt(D), as tokens are",
    ),
    Fault(
        "positions count batch rows",
        "encoder.embeddings",
        computing("encoder.embed_positions", lambda _, x, *__: batch_rows(*x.shape).to(x.dtype)),
        diagnosis="positions count batch rows, not tokens",
    ),
]
