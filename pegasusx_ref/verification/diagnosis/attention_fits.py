"""Bugs of attention with one unknown number, which is fitted to a few rows of the candidate's tensor. [spec 16]

A fit explains an error only where it leaves rounding in all rows, so it needs far more numbers than its one unknown.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.operations import HIDDEN
from pegasusx_ref.verification.diagnosis.attention_bugs import LocatedAttention
from pegasusx_ref.verification.diagnosis.attention_steps import Bug
from pegasusx_ref.verification.diagnosis.mask_bugs import lowered_by, masked_with
from pegasusx_ref.verification.diagnosis.score_bugs import added, capped, times
from pegasusx_ref.verification.diagnosis.softmax_bugs import with_epsilon
from pegasusx_ref.verification.verdicts import Failure

LEFT = 0.05  # the largest share of the squared error that a fit may leave in the sampled rows
NUM_STARTS, MAX_STEPS, MAX_HALVINGS = 2, 25, 4
EARLY, HOPELESS = 3, 0.5  # steps after which a bug is given up that leaves a larger share
MORE = 4.0  # times the sum of squares that a number with fewer digits may leave
STALLED = 0.9  # the share of a sum of squares that a step may leave
SURE = 3.0  # standard errors within which a number is written with fewer digits

NamedFit = tuple[str, str, Callable[[], np.ndarray]]  # where, the bug in words, and the tensor with it


class Family(NamedTuple):
    """Bugs that differ in one number.

    Attributes:
        words: the bug, with {} for the number.
        bug: builds the bug with a number.
        starts: numbers to start from.
    """

    words: str
    bug: Callable[[float], Bug]
    starts: tuple[float, ...]


def families() -> list[Family]:
    """List the bugs with one number."""
    scales, caps = (0.1, 0.5, 0.9, 1.1, 2.0, 8.0), (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
    constants = (-1.0, -3.0, -5.0, -7.0, -9.0, -11.0, -13.0, -16.0)
    masks: list[tuple[str, Callable[..., np.ndarray]]] = [
        ("the mask adds only {} to masked scores", lowered_by),
        ("masked scores are set to {}, which is not low enough", masked_with),
    ]
    return [
        Family("scores are {} times what they should be", lambda c: Bug("", scores=times(c)), scales),
        Family("scores are capped at {} by tanh", lambda c: Bug("", scores=partial(capped, c, True)), caps),
        Family("scores are clipped at {}", lambda c: Bug("", scores=partial(capped, c, False)), caps),
        Family(
            "the distance from query to key times {} is added to scores",
            lambda c: Bug("", scores=partial(added, lambda distances: c * distances)),
            (0.1, -0.1),
        ),
        Family(
            "the absolute distance of query and key times {} is added to scores",
            lambda c: Bug("", scores=partial(added, lambda distances: c * np.abs(distances))),
            (0.1, -0.1),
        ),
        *(
            Family(words, partial(lambda mask, c: Bug("", mask=partial(mask, c), sees_filling=True), mask), constants)
            for words, mask in masks
        ),
        Family(
            "{} is added to the sum of the softmax",
            lambda c: Bug("", ("probs",), softmax=partial(with_epsilon, c)),
            tuple(10.0**-n for n in range(10)),
        ),
    ]


def attention_fits(located: LocatedAttention, failure: Failure, arithmetic: Arithmetic) -> Iterator[NamedFit]:
    """Yield the tensor with each bug whose number fits a few rows.

    Args:
        located: the attention of the failed operation, which computes a few rows.
        failure: those rows of the wrong tensor.
        arithmetic: what the candidate computes in.
    """
    rows = located.op.rows
    for family in families():
        for (where, _, _), variant in located.variants([family.bug(family.starts[0])]).items():
            filling = variant.keywords["filling"]

            def evaluate(c: float, family: Family = family, filling: np.ndarray | None = filling) -> np.ndarray:
                wrong = located.compute(family.bug(c), filling)
                return wrong if rows is None or not wrong.size else wrong[..., rows, :]

            if (fit := fitted_number(evaluate, family.starts, failure, arithmetic)) is not None:
                number, rounded = fit
                whole = partial(located.whole().compute, family.bug(number), filling)
                yield where, family.words.format(f"{rounded:g}"), whole


def fitted_number(
    evaluate: Callable[[float], np.ndarray], starts: tuple[float, ...], failure: Failure, arithmetic: Arithmetic
) -> tuple[float, float] | None:
    """Return the number with which a bug explains a few rows, and the same with few digits; None where none does."""
    found, value = failure.candidate, failure.estimate.value
    with np.errstate(all="ignore"):
        is_seen = failure.valid[..., None] & (found > HIDDEN)
        floor = 0.1 * arithmetic.result * np.abs(np.where(is_seen, found, 0.0)).max()
        deviation = np.maximum(np.sqrt(failure.estimate.allowed().variance), floor)

        def rest(c: float) -> np.ndarray:
            wrong = evaluate(c)
            if wrong.shape != found.shape:
                return np.full(1, np.inf)
            counts = is_seen & (wrong > HIDDEN)  # not NaN, in rows that are not asked for
            return np.where(counts, (found - wrong) / deviation, 0.0)

        rests = {c: rest(c) for c in starts}
        losses = {c: loss for c, r in rests.items() if np.isfinite(loss := float((r**2).sum()))}
        if not losses:
            return None
        is_asked = np.isfinite(evaluate(min(losses, key=lambda c: losses[c]))).any(axis=-1, keepdims=True)
        error = np.where(is_seen & is_asked & (value > HIDDEN), (found - value) / deviation, 0.0)
        allowed = max(LEFT * float((error**2).sum()), error.size)
        distinct = {loss: c for c, loss in losses.items()}  # caps beyond all scores are alike
        for first, start in sorted(distinct.items())[:NUM_STARTS]:
            c, loss, uncertainty = gauss_newton(rest, start, first)
            if loss <= allowed and uncertainty < abs(c):
                reach = SURE * uncertainty + 2 * arithmetic.result * abs(c)  # it is rounded itself
                likely = (r for r in roundings(c) if abs(r - c) <= reach and (rest(r) ** 2).sum() <= MORE * loss)
                return c, next(likely, c)
    return None


def gauss_newton(rest: Callable[[float], np.ndarray], c: float, loss: float) -> tuple[float, float, float]:
    """Minimize the sum of squares of a function of one number.

    Args:
        rest: the function (..., n).
        c: the number to start from.
        loss: the sum of squares there.

    Returns:
        The number, the sum of squares, and the number's standard error if each row has a single error.
    """
    uncertainty, first, here = np.inf, loss, rest(c)
    for number in range(MAX_STEPS):
        h = 1e-4 * abs(c)
        slope = (rest(c + h) - rest(c - h)) / (2 * h)
        power = float((slope**2).sum())
        if not 0 < power < np.inf:
            break
        uncertainty = float(np.sqrt((np.abs(slope).sum(axis=-1) ** 2).sum())) / power
        step = float(np.clip(-(slope * here).sum() / power, -0.7 * abs(c), 3 * abs(c)))
        is_clipped = not -0.7 * abs(c) < step < 3 * abs(c)
        for _ in range(MAX_HALVINGS):
            there = rest(c + step)
            if (following := float((there**2).sum())) <= loss:
                break
            step /= 2
        else:
            break
        has_stalled = following > STALLED * loss and not is_clipped
        c, loss, here = c + step, following, there
        if has_stalled or (number >= EARLY and loss > HOPELESS * first):
            break
    return c, loss, uncertainty


def roundings(number: float) -> list[float]:
    """Round a number to 1, 2, 3 … digits."""
    return [float(f"{number:.{digits}e}") for digits in range(8)]
