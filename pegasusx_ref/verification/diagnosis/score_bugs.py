"""Known bugs in the scale of scores. [spec 16]"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from pegasusx_ref.verification.diagnosis.attention_inputs import Attention
from pegasusx_ref.verification.diagnosis.attention_steps import Bug, Part, right_scores


def score_bugs(attention: Attention) -> list[Bug]:
    """List wrong scales of scores."""
    H, F = attention.num_heads, attention.config.d_model // attention.num_heads

    def unscaled(part: Part) -> np.ndarray:
        found: np.ndarray = part.q @ part.k.swapaxes(2, 3)
        return found

    factors = {
        "scores are divided by sqrt(D), not by the root of the head width": 1 / math.sqrt(H),
        "the scale is applied twice: division by the head width, not by its root": 1 / math.sqrt(F),
        "scores are multiplied by sqrt(F), not divided by it": float(F),
        "scores are multiplied by log2(e) for exp2, but exp is taken": math.log2(math.e),
        "softmax is to the base 2": math.log(2),
    }
    return [
        Bug("scores are not scaled", scores=unscaled),
        *(Bug(name, scores=times(factor)) for name, factor in factors.items()),
        *(Bug(name, scores=partial(added, bias)) for name, bias in position_biases(H).items()),
    ]


def times(factor: float) -> Callable[[Part], np.ndarray]:
    """Return a function that computes scores times a factor."""
    return lambda part: right_scores(part) * factor


def added(bias: Callable[[np.ndarray], np.ndarray], part: Part) -> np.ndarray:
    """Compute scores with a bias that depends on the distance from query to key; global tokens have none."""
    distances = part.block.keys[None] - part.block.queries[:, None]
    found = right_scores(part)
    found[..., part.num_globals :] += bias(distances)
    return found


def capped(limit: float, is_smooth: bool, part: Part) -> np.ndarray:
    """Compute scores that stay below a limit."""
    scores = right_scores(part)
    found: np.ndarray = limit * np.tanh(scores / limit) if is_smooth else scores.clip(-limit, limit)
    return found


def position_biases(num_heads: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """List biases of scores by distance."""
    slopes = 2.0 ** (-8 * np.arange(1, num_heads + 1) / num_heads)[:, None, None]
    return {"scores have a position bias (ALiBi)": lambda distances: -slopes * np.abs(distances)}
