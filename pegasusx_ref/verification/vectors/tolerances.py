"""How far an implementation may be off, tensor by tensor: two numbers for each way to use a vector."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tracing import listen
from pegasusx_ref.verification.arithmetic import Arithmetic, Errors, rounding
from pegasusx_ref.verification.candidates import Inputs
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.operations import LOWEST, CheckingOperations


class Tolerance(NamedTuple):
    """What rounding does to one tensor.

    Attributes:
        sigma: the standard deviation of its errors, of the row where it is largest (root mean square over the row).
        bound: what no element of a correct implementation is off by.
    """

    sigma: float
    bound: float

    def or_wider(self, other: "Tolerance") -> "Tolerance":
        """Allow what either allows: the spread of samples may come out below what one operation alone may do."""
        return Tolerance(max(self.sigma, other.sigma), max(self.bound, other.bound))


Take = Callable[[str, np.ndarray], np.ndarray]  # rows that count, as a matrix
GoOn = Callable[[str, Estimate], Estimate]  # what the next operations find in a tensor's place


def on_exact(name: str, estimate: Estimate) -> Estimate:
    """Go on with the golden tensor: each operation's errors are its own."""
    return Estimate(estimate.rng, estimate.value, estimate.value, names=(name,))


def on_rounded(arithmetic: Arithmetic) -> Callable[[str, Estimate], Estimate]:
    """Go on with the golden tensor as an implementation can hold it, rounded once."""

    def go_on(name: str, estimate: Estimate) -> Estimate:
        seen = np.where(estimate.value == LOWEST, 0.0, estimate.value)
        return Estimate(estimate.rng, estimate.value, estimate.value, rounding(arithmetic, seen))

    return go_on


def on_own(name: str, estimate: Estimate) -> Estimate:
    """Go on with what rounding has made of the tensor by then, and forget how it came about: that would hold it all."""
    return estimate.forgetful()


def tolerances(
    model: PegasusXForConditionalGeneration,
    inputs: Inputs,
    arithmetic: Arithmetic,
    go_on: GoOn,
    take: Take,
    see: Callable[[str, Estimate], None] | None = None,
) -> dict[str, Tolerance]:
    """Find out how far rounding may take every tensor of a run.

    Args:
        model: the golden one.
        inputs: ids and masks.
        arithmetic: what the implementation computes in.
        go_on: what its operations start from: `on_exact`, `on_rounded(…)` or `on_own`.
        take: gives the rows of an array of a tensor's shape that count and are kept, as a matrix.
        see: is shown every estimate.

    Returns:
        Tolerances by name, in the order of execution.
    """
    found: dict[str, Tolerance] = {}

    def measure(name: str, estimate: Estimate) -> Estimate:
        if see is not None:
            see(name, estimate)
        found[name] = largest(Errors(*(take(name, array) for array in estimate.allowed())))
        return go_on(name, estimate)

    golden = PegasusXForConditionalGeneration(model.config, model.state_dict(), CheckingOperations(arithmetic))
    with listen(measure):
        golden(**inputs)
    return found


def largest(errors: Errors) -> Tolerance:
    """Take the row with the largest errors, and the element with the largest bound.

    Args:
        errors: of the rows that count (rows, features).
    """
    if not errors.variance.size:
        return Tolerance(0.0, 0.0)
    return Tolerance(float(np.sqrt(errors.variance.mean(axis=1).max())), float(errors.bound.max()))
