"""The tolerance of each tensor of a vector: two numbers for each way to use the vector."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tracing import listen
from pegasusx_ref.verification.candidates.inputs import Inputs
from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.error_bounds import Errors, rounding_errors
from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.checking.operations import LOWEST, CheckingOperations

VECTOR_ARITHMETICS = ("float64", "float32", "tf32", "bfloat16", "float16")


class Tolerance(NamedTuple):
    """The rounding error of one tensor.

    Attributes:
        sigma: the standard deviation of the errors, as the root mean square of the row where it is largest.
        bound: the largest error of an element in a correct implementation.
    """

    sigma: float
    bound: float

    def or_wider(self, other: "Tolerance") -> "Tolerance":
        """Return the larger of each number."""
        return Tolerance(max(self.sigma, other.sigma), max(self.bound, other.bound))


TakeRows = Callable[[str, np.ndarray], np.ndarray]  # the rows that count, as a matrix
Replacement = Callable[[str, Estimate], Estimate]  # the tensor that the next operations compute from


def on_exact(name: str, estimate: Estimate) -> Estimate:
    """Continue with the golden tensor: each operation has its own errors only."""
    return Estimate(estimate.value, estimate.value, names=(name,))


def on_rounded(arithmetic: Arithmetic) -> Callable[[str, Estimate], Estimate]:
    """Continue with the golden tensor, rounded once to what an implementation can store."""

    def replace(name: str, estimate: Estimate) -> Estimate:
        seen = np.where(estimate.value == LOWEST, 0.0, estimate.value)
        return Estimate(estimate.value, estimate.value, rounding_errors(arithmetic, seen))

    return replace


def on_own(name: str, estimate: Estimate) -> Estimate:
    """Continue with the tensor and all earlier rounding errors; detached, to free the memory of earlier tensors."""
    return estimate.detach()


def tolerances(
    model: PegasusXForConditionalGeneration,
    inputs: Inputs,
    arithmetic: Arithmetic,
    replace: Replacement,
    take: TakeRows,
    see: Callable[[str, Estimate], None] | None = None,
) -> dict[str, Tolerance]:
    """Compute the rounding error of every tensor of a run.

    Args:
        model: the golden model.
        inputs: ids and masks.
        arithmetic: what the implementation computes in.
        replace: what its operations compute from: `on_exact`, `on_rounded(…)` or `on_own`.
        take: returns the rows that count and are kept, as a matrix, for any array of a tensor's shape.
        see: called with every estimate.

    Returns:
        Tolerances by name, in the order of execution.
    """
    found: dict[str, Tolerance] = {}

    def measure(name: str, estimate: Estimate) -> Estimate:
        if see is not None:
            see(name, estimate)
        found[name] = largest(Errors(*(take(name, array) for array in estimate.allowed())))
        return replace(name, estimate)

    golden = PegasusXForConditionalGeneration(model.config, model.state_dict(), CheckingOperations(arithmetic))
    with listen(measure):
        golden(**inputs)
    return found


def largest(errors: Errors) -> Tolerance:
    """Return the sigma of the row with the largest errors, and the largest bound of an element.

    Args:
        errors: of the rows that count (rows, features).
    """
    if not errors.variance.size:
        return Tolerance(0.0, 0.0)
    return Tolerance(float(np.sqrt(errors.variance.mean(axis=1).max())), float(errors.bound.max()))
