"""A tensor on its way through a check: what it must be, and what rounding may have made of it. [spec 16]"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.verification.arithmetic import Errors

NUM_SAMPLES = 8
BEYOND_SAMPLES = 8  # standard deviations that a sum of several roundings may be off by


class Made(NamedTuple):
    """How an estimate came about, so that a hypothesis can do the same in another way.

    Attributes:
        operation: the name of the operation, or of its part.
        inputs: estimates that it was computed from.
        settings: what else went in: weights, eps, masks.
        golden: computes the value from those of the inputs.
    """

    operation: str
    inputs: tuple["Estimate", ...]
    settings: dict[str, Any]
    golden: Callable[..., np.ndarray]


class Estimate:
    """What a candidate's tensor must be. [spec 16.10]

    Where everything before it is the candidate's own, that is one float64 tensor with the errors of one operation.
    Where tensors before it are not known, samples of what rounding may have made of them go along.

    Args:
        rng: of the samples.
        value: what follows from the candidate's tensors.
        clean: what follows from the inputs alone, for the error from end to end.
        errors: of the operation that gave the value; None where the value is the candidate's own tensor.
        samples: as many as `NUM_SAMPLES`, where not all inputs of the operation were the candidate's own.
        made: how it came about.
        names: of the public tensors that it is, or was put together from, where a listener gave any.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        value: np.ndarray,
        clean: np.ndarray,
        errors: Errors | None = None,
        samples: Sequence[np.ndarray] | None = None,
        made: Made | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self.rng, self.value, self.clean, self.errors, self.made = rng, value, clean, errors, made
        self._samples, self.names = samples, names

    @property
    def operation(self) -> str:
        """What computed it, by name."""
        return "pass on" if self.made is None else self.made.operation

    @property
    def is_known(self) -> bool:
        """Whether this is the candidate's own tensor."""
        return self.errors is None and self._samples is None

    @property
    def is_direct(self) -> bool:
        """Whether it follows by one operation from the candidate's own tensors."""
        return self._samples is None

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of an array."""
        return self.value.dtype

    def samples(self) -> Sequence[np.ndarray]:
        """Give what the candidate's tensor may be; for one that is known that many times itself."""
        if self.is_known:
            return [self.value] * NUM_SAMPLES
        if self._samples is None:
            assert self.errors is not None
            deviation = np.sqrt(self.errors.variance)
            self._samples = [self.value + deviation * self.rng.standard_normal(self.shape) for _ in range(NUM_SAMPLES)]
            self.errors = None
        return self._samples

    def allowed(self) -> Errors:
        """Give variance and bound of the difference between the candidate's tensor and the value."""
        if self._samples is not None:
            variance = np.mean([(sample - self.value) ** 2 for sample in self._samples], axis=0)
            # Eight samples say little of one element; its neighbours in the row have seen like roundings.
            variance = (variance + variance.mean(axis=-1, keepdims=True)) / 2
            return Errors(variance, BEYOND_SAMPLES * np.sqrt(variance))
        if self.errors is None:  # passed on as it is
            return Errors(np.zeros(self.shape), np.zeros(self.shape))
        return self.errors

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "Estimate":
        """Rearrange the elements, or take some of them."""
        samples = None if self.is_known else [function(sample) for sample in self.samples()]
        value = function(self.value)
        clean = value if self.clean is self.value else function(self.clean)
        made = None if self.is_known else Made("rearrange", (self,), {}, function)
        return Estimate(self.rng, value, clean, samples=samples, made=made, names=self.names)

    def forgetful(self) -> "Estimate":
        """Copy without how it came about: what holds on to an estimate holds on to all that it was made from."""
        copied = copy(self)
        copied.made = None
        return copied

    def reshape(self, *shape: int) -> "Estimate":
        """As of an array."""
        return self.mapped(lambda array: array.reshape(*shape))

    def swapaxes(self, one: int, other: int) -> "Estimate":
        """As of an array."""
        return self.mapped(lambda array: array.swapaxes(one, other))

    def __getitem__(self, key: Any) -> "Estimate":
        return self.mapped(lambda array: array[key])


def joined(parts: Sequence[Estimate], axis: int) -> Estimate:
    """Put estimates side by side."""

    def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays, axis=axis)

    samples, made = None, None
    if not all(part.is_known for part in parts):
        samples = [join(some) for some in zip(*(part.samples() for part in parts), strict=True)]
        made = Made("join", tuple(parts), {}, lambda *arrays: join(arrays))
    value = join([part.value for part in parts])
    same = all(part.clean is part.value for part in parts)
    clean = value if same else join([part.clean for part in parts])
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    return Estimate(parts[0].rng, value, clean, samples=samples, made=made, names=names)
