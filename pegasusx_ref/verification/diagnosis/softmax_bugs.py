"""Known bugs in the softmax of attention, and in fused kernels that compute it tile by tile. [spec 16]"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pegasusx_ref.golden.attention import softmax
from pegasusx_ref.verification.checking.operations import LOWEST
from pegasusx_ref.verification.diagnosis.attention_inputs import Attention
from pegasusx_ref.verification.diagnosis.attention_steps import Bug, Part
from pegasusx_ref.verification.diagnosis.rounded_operands import to_dtype

TILES = (8, 16, 32, 64, 128, 256)
PRECISIONS = ("float16", "bfloat16", "int8")
ROUNDED = "probabilities are rounded to {} before the weighted sum"


def probability_bugs(attention: Attention) -> list[Bug]:
    """List functions of the scores that are not their softmax, and other uses of the probabilities."""
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "softmax is taken twice": lambda s: softmax(softmax(s)),
        "softmax is a sigmoid": lambda s: 0.5 * (1 + np.tanh(0.5 * np.maximum(s, -1e3))),
        "softmax has an extra 1 in its denominator": lambda s: softmax(with_zero(s))[..., 1:],
        "softmax is not divided by its sum": exponentials,
    }
    found = [
        Bug(name, ("probs",), softmax=partial(ignore_part, function), sees_filling=True)
        for name, function in functions.items()
    ]
    found += [
        Bug(
            "softmax runs over the queries",
            ("probs",),
            softmax=lambda s, _: softmax(s.swapaxes(2, 3)).swapaxes(2, 3),
            needs_all_rows=True,
            sees_filling=True,
        ),
        Bug(
            "softmax runs over the heads",
            ("probs",),
            softmax=lambda s, _: softmax(s.swapaxes(1, 3)).swapaxes(1, 3),
            sees_filling=True,
        ),
        Bug(
            "the mask multiplies probabilities after the softmax, whose sum is not 1 then",
            ("scores", "probs"),
            mask=lambda s, _: s,
            softmax=masked_afterwards,
            extends=True,
            sees_filling=True,
        ),
    ]
    found.append(Bug("probabilities are uniform: the result is the mean of the values", ("probs",), softmax=uniform))
    if attention.is_encoder:
        bug = "global tokens and tokens have a softmax each"
        found.append(Bug(bug, ("probs",), softmax=apart))
    for tile in TILES:
        found += [
            Bug(
                f"the keys after the last whole tile of {tile} are ignored",
                ("probs",),
                softmax=partial(ignoring, tile),
                sees_filling=True,
            ),
            Bug(
                f"the last tile of {tile} keys is counted twice",
                ("probs",),
                softmax=partial(repeating, tile),
                sees_filling=True,
            ),
            Bug(
                f"the sum is not rescaled when a tile of {tile} keys raises the maximum",
                ("probs",),
                softmax=partial(not_rescaled, tile, True),
                sees_filling=True,
            ),
            Bug(
                f"the output is not rescaled when a tile of {tile} keys raises the maximum",
                ("probs",),
                softmax=partial(not_rescaled, tile, False),
                sees_filling=True,
            ),
        ]
    found += [
        Bug("the last key is ignored", ("probs",), softmax=partial(without, slice(-1, None))),
        Bug("the first key is ignored", ("probs",), softmax=partial(without, slice(0, 1))),
    ]
    found += [Bug(ROUNDED.format(name), ("context",), context=partial(rounding, name)) for name in PRECISIONS]
    return found


def ignore_part(function: Callable[[np.ndarray], np.ndarray], scores: np.ndarray, _: Part) -> np.ndarray:
    """Apply a function of scores alone."""
    return function(scores)


def exponentials(scores: np.ndarray) -> np.ndarray:
    """Compute exponentials without the division by their sum."""
    found: np.ndarray = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return found


def with_zero(scores: np.ndarray) -> np.ndarray:
    """Put a score of 0 before the others."""
    return np.concatenate([np.zeros_like(scores[..., :1]), scores], axis=-1)


def with_epsilon(epsilon: float, scores: np.ndarray, _: Part) -> np.ndarray:
    """Add a number to the sum of the exponentials."""
    found = exponentials(scores)
    quotient: np.ndarray = found / (found.sum(axis=-1, keepdims=True) + epsilon)
    return quotient


def masked_afterwards(scores: np.ndarray, part: Part) -> np.ndarray:
    """Set probabilities of masked keys to 0 after the softmax."""
    found: np.ndarray = softmax(scores) * part.visible[:, None]
    return found


def apart(scores: np.ndarray, part: Part) -> np.ndarray:
    """Normalize the scores of global tokens and of tokens separately."""
    halves = np.split(scores, [part.num_globals], axis=-1)
    return np.concatenate([softmax(half) for half in halves], axis=-1)


def ignoring(tile: int, scores: np.ndarray, part: Part) -> np.ndarray:
    """Leave out the keys after the last whole tile."""
    X = scores.shape[-1]
    return without(slice(X // tile * tile, None), scores, part) if X % tile and tile < X else scores[..., :0]


def without(keys: slice, scores: np.ndarray, _: Part) -> np.ndarray:
    """Leave keys out."""
    scores = scores.copy()
    scores[..., keys] = LOWEST
    return softmax(scores)


def repeating(tile: int, scores: np.ndarray, _: Part) -> np.ndarray:
    """Count the keys of the last tile twice."""
    weights = 1.0 + (np.arange(scores.shape[-1]) >= (scores.shape[-1] - 1) // tile * tile)
    found = exponentials(scores) * weights
    quotient: np.ndarray = found / found.sum(axis=-1, keepdims=True)
    return quotient if weights[0] == 1 else scores[..., :0]


def not_rescaled(tile: int, is_sum_wrong: bool, scores: np.ndarray, _: Part) -> np.ndarray:
    """Subtract from each tile's scores the maximum so far, and leave the tiles before as they are."""
    X = scores.shape[-1]
    if tile >= X:
        return scores[..., :0]
    maximum = np.maximum.accumulate(scores, axis=-1)[..., np.minimum(np.arange(X) // tile * tile + tile, X) - 1]
    found = np.exp(scores - maximum)
    total = found if is_sum_wrong else exponentials(scores)
    quotient: np.ndarray = found / total.sum(axis=-1, keepdims=True)
    return quotient


def rounding(name: str, probs: np.ndarray, part: Part) -> np.ndarray:
    """Compute the weighted sum of rounded probabilities."""
    rounded_probs = np.round(probs * 127) / 127 if name == "int8" else to_dtype(name, probs)
    found: np.ndarray = rounded_probs @ part.v
    return found


def int8_by(axes: Any, x: np.ndarray) -> np.ndarray:
    """Round to 255 levels between minus and plus the largest number along some axes."""
    scale = np.abs(x).max(axis=axes, keepdims=True, initial=1e-30) / 127
    found: np.ndarray = np.round(x / scale) * scale
    return found


def uniform(scores: np.ndarray, part: Part) -> np.ndarray:
    """Give all visible keys the same probability."""
    seen = np.broadcast_to(part.visible[:, None], scores.shape).astype(float)
    found: np.ndarray = seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1)
    return found
