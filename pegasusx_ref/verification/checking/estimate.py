"""What a candidate's tensor must be, and the error that rounding may leave in it. [spec 16]"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.error_bounds import Errors

INSIDE_ATTENTION = ("scores", "softmax", "weighted_sum")


class Origin(NamedTuple):
    """The operation that gave an estimate, so that a diagnosis can repeat it with a bug.

    Attributes:
        operation: the operation's name; attention has three, those of `INSIDE_ATTENTION`.
        inputs: the estimates that it was computed from.
        settings: its other arguments: weights, eps, masks.
        golden: computes the value from the values of the inputs.
        errors: computes the operation's own errors in an arithmetic.
    """

    operation: str
    inputs: tuple["Estimate", ...]
    settings: dict[str, Any]
    golden: Callable[..., np.ndarray]
    errors: Callable[[Arithmetic], Errors] | None = None


class IfRight(NamedTuple):
    """What a tensor would be if wrong tensors before it were as expected.

    Attributes:
        value: without their rounding errors.
        sample: with a sample of them.
        names: of those tensors; none where nothing before it is wrong.
    """

    value: np.ndarray
    sample: np.ndarray
    names: tuple[str, ...]

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "IfRight":
        """Apply a function to both arrays."""
        return IfRight(function(self.value), function(self.sample), self.names)

    @staticmethod
    def join(parts: Sequence["IfRight"], function: Callable[..., np.ndarray]) -> "IfRight":
        """Combine several by a function of their arrays."""
        names = tuple(dict.fromkeys(name for part in parts for name in part.names))
        return IfRight(function(*(x.value for x in parts)), function(*(x.sample for x in parts)), names)


class Estimate:
    """The expected value of a candidate's tensor, with its error. [spec 16.10]

    Args:
        value: what follows from the candidate's tensors; NaN where those are not finite.
        clean: what follows from the model's inputs alone, for the end-to-end error.
        errors: what rounding may leave in the candidate's tensor; None where the value is the candidate's own tensor.
        is_direct: whether one operation computes it from the candidate's own tensors.
        origin: the operation that gave the value.
        names: of the public tensors that this is, or was assembled from.
        expected: where it is the candidate's own tensor and wrong, what it should have been.
        doubt: the name of an earlier tensor of a wrong shape, for which the expected one stands in; "" if none.
    """

    def __init__(
        self,
        value: np.ndarray,
        clean: np.ndarray,
        errors: Errors | None = None,
        is_direct: bool = True,
        origin: Origin | None = None,
        names: tuple[str, ...] = (),
        doubt: str = "",
        expected: IfRight | None = None,
    ) -> None:
        self.value, self.clean, self.errors, self.is_direct = value, clean, errors, is_direct
        self.origin, self.names, self.doubt, self.expected = origin, names, doubt, expected

    @property
    def operation(self) -> str:
        """The name of the operation that computed it."""
        return "pass on" if self.origin is None else self.origin.operation

    @property
    def is_known(self) -> bool:
        """Whether this is the candidate's own tensor."""
        return self.errors is None

    @property
    def variance(self) -> np.ndarray:
        """The variance of the error."""
        return self.allowed().variance

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's dtype."""
        return self.value.dtype

    def allowed(self) -> Errors:
        """Return variance and bound of the difference between the candidate's tensor and the value."""
        if self.errors is None:  # passed on unchanged
            zeros = np.broadcast_to(0.0, self.shape)
            return Errors(zeros, zeros)
        return self.errors

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Estimate":
        """Apply a function that rearranges or selects elements."""
        value = function(self.value)
        clean = value if self.clean is self.value else function(self.clean)
        if self.errors is None:
            expected = None if self.expected is None else self.expected.map(function)
            return Estimate(value, clean, names=self.names, expected=expected)
        origin, errors = Origin("rearrange", (self,), {}, function), self.errors.map(function)
        return Estimate(value, clean, errors, self.is_direct, origin, self.names, self.doubt)

    def if_right(self) -> IfRight:
        """Return what follows if wrong tensors were as expected."""
        if self.expected is not None:
            return self.expected
        inputs = [] if self.is_known or self.origin is None else [x.if_right() for x in self.origin.inputs]
        if self.origin is None or not any(x.names for x in inputs):
            return IfRight(self.value, self.value, ())
        return IfRight.join(inputs, self.origin.golden)

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

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        return concatenate(*args, **kwargs) if function is np.concatenate else NotImplemented


def concatenate(parts: Sequence[Estimate], axis: int) -> Estimate:
    """Concatenate estimates along an axis."""

    def join(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays, axis=axis)

    value = join(*(part.value for part in parts))
    clean = value if all(part.clean is part.value for part in parts) else join(*(part.clean for part in parts))
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    if all(part.is_known for part in parts):
        is_right = all(part.expected is None for part in parts)
        expected = None if is_right else IfRight.join([part.if_right() for part in parts], join)
        return Estimate(value, clean, names=names, expected=expected)
    errors = Errors(*(join(*arrays) for arrays in zip(*(part.allowed() for part in parts), strict=True)))
    is_direct, origin = all(part.is_direct for part in parts), Origin("join", tuple(parts), {}, join)
    return Estimate(value, clean, errors, is_direct, origin, names, first_doubt(parts))


def first_doubt(estimates: Sequence[Estimate]) -> str:
    """Return the first tensor of a wrong shape that one of the estimates depends on; "" if there is none."""
    return next((estimate.doubt for estimate in estimates if estimate.doubt), "")
