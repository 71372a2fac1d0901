"""What a candidate's tensor must be, and the error that rounding may leave in it. [spec 16]"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.verification.error_bounds import Errors

NUM_SAMPLES = 8
SAMPLE_BOUND = 8  # the bound of an error that is estimated from samples, in standard deviations


class Origin(NamedTuple):
    """The operation that gave an estimate, so that a diagnosis can repeat it with a bug.

    Attributes:
        operation: the operation's name; attention has three: "scores", "softmax" and "weighted_sum".
        inputs: the estimates that it was computed from.
        settings: its other arguments: weights, eps, masks.
        golden: computes the value from the values of the inputs.
    """

    operation: str
    inputs: tuple["Estimate", ...]
    settings: dict[str, Any]
    golden: Callable[..., np.ndarray]


class Estimate:
    """The expected value of a candidate's tensor, with its error. [spec 16.10]

    Where the candidate shows all inputs of an operation, this is one float64 tensor and the errors of that operation.
    Where it does not, this also holds samples of what rounding may have made of the tensors that it does not show.

    Args:
        rng: the generator of the samples.
        value: what follows from the candidate's tensors.
        clean: what follows from the model's inputs alone, for the end-to-end error.
        errors: of the operation that gave the value; None where the value is the candidate's own tensor.
        samples: `NUM_SAMPLES` arrays, where the candidate does not show all inputs of the operation.
        origin: the operation that gave the value.
        names: of the public tensors that this is, or was assembled from.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        value: np.ndarray,
        clean: np.ndarray,
        errors: Errors | None = None,
        samples: Sequence[np.ndarray] | None = None,
        origin: Origin | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self.rng, self.value, self.clean, self.errors, self.origin = rng, value, clean, errors, origin
        self._samples, self.names = samples, names

    @property
    def operation(self) -> str:
        """The name of the operation that computed it."""
        return "pass on" if self.origin is None else self.origin.operation

    @property
    def is_known(self) -> bool:
        """Whether this is the candidate's own tensor."""
        return self.errors is None and self._samples is None

    @property
    def is_direct(self) -> bool:
        """Whether one operation computes it from the candidate's own tensors."""
        return self._samples is None

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's dtype."""
        return self.value.dtype

    def samples(self) -> Sequence[np.ndarray]:
        """Return `NUM_SAMPLES` values that the candidate's tensor may have; a known tensor is returned each time."""
        if self.is_known:
            return [self.value] * NUM_SAMPLES
        if self._samples is None:
            assert self.errors is not None
            deviation = np.sqrt(self.errors.variance)
            self._samples = [self.value + deviation * self.rng.standard_normal(self.shape) for _ in range(NUM_SAMPLES)]
            self.errors = None
        return self._samples

    def allowed(self) -> Errors:
        """Return variance and bound of the difference between the candidate's tensor and the value."""
        if self._samples is not None:
            variance = np.mean([(sample - self.value) ** 2 for sample in self._samples], axis=0)
            # Eight samples are few for one element; the other elements of the row had similar roundings.
            variance = (variance + variance.mean(axis=-1, keepdims=True)) / 2
            return Errors(variance, SAMPLE_BOUND * np.sqrt(variance))
        if self.errors is None:  # passed on unchanged
            return Errors(np.zeros(self.shape), np.zeros(self.shape))
        return self.errors

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Estimate":
        """Apply a function that rearranges or selects elements."""
        samples = None if self.is_known else [function(sample) for sample in self.samples()]
        value = function(self.value)
        clean = value if self.clean is self.value else function(self.clean)
        origin = None if self.is_known else Origin("rearrange", (self,), {}, function)
        return Estimate(self.rng, value, clean, samples=samples, origin=origin, names=self.names)

    def detach(self) -> "Estimate":
        """Copy without the origin, which keeps all earlier estimates in memory."""
        copied = copy(self)
        copied.origin = None
        return copied

    def reshape(self, *shape: int) -> "Estimate":
        """Reshape, as an array does."""
        return self.map(lambda array: array.reshape(*shape))

    def swapaxes(self, one: int, other: int) -> "Estimate":
        """Swap two axes, as an array does."""
        return self.map(lambda array: array.swapaxes(one, other))

    def __getitem__(self, key: Any) -> "Estimate":
        return self.map(lambda array: array[key])


def concatenate(parts: Sequence[Estimate], axis: int) -> Estimate:
    """Concatenate estimates along an axis."""

    def join(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays, axis=axis)

    samples, origin = None, None
    if not all(part.is_known for part in parts):
        samples = [join(*arrays) for arrays in zip(*(part.samples() for part in parts), strict=True)]
        origin = Origin("join", tuple(parts), {}, join)
    value = join(*(part.value for part in parts))
    clean = value if all(part.clean is part.value for part in parts) else join(*(part.clean for part in parts))
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    return Estimate(parts[0].rng, value, clean, samples=samples, origin=origin, names=names)
