"""Arrays that carry the rounding errors of their computation; golden functions take them for NumPy's. [spec 16]"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.error_bounds import THIRD, rounding_errors
from pegasusx_ref.verification.checking.propagation import NEAR_KINK
from pegasusx_ref.verification.gradients.sums import (
    drift_variance,
    product_drift,
    reach,
    sum_variance,
    token_sum_variance,
)

# For each elementwise function the derivatives by its arguments, from the arguments x and y and the result z.
DERIVATIVES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "add": lambda x, y, z: (1.0, 1.0),
    "subtract": lambda x, y, z: (1.0, 1.0),
    "multiply": lambda x, y, z: (y, x),
    "divide": lambda x, y, z: (1 / y, z / y),
    "power": lambda x, y, z: (y * x ** (y - 1), 0.0),
    "negative": lambda x, z: (1.0,),
    "sqrt": lambda x, z: (0.5 / z,),
    "exp": lambda x, z: (z,),
    "log": lambda x, z: (1 / x,),
    "tanh": lambda x, z: (1 - z * z,),
    "erf": lambda x, z: (2 / math.sqrt(math.pi) * np.exp(-x * x),),
}
ERF_ERROR = 3.0  # unit roundoffs, absolute: torch computes erf as in Abramowitz and Stegun 7.1.26
FUNCTIONS: dict[Any, Callable[..., "Rounded"]] = {}  # of NumPy, which are no ufuncs


class Rounded(NDArrayOperatorsMixin):
    """An array, with the variance of the errors of a candidate that computes it operation by operation. [spec 16.29]

    Every operation adds its own rounding in the candidate's arithmetic to what it passes on from its operands, to first
    order; errors of different elements count as independent. Plain arrays are exact, except for rounded parameters.

    Args:
        value: float64.
        variance: of the errors, of the same shape.
        arithmetic: what the candidate computes in.
        is_direct: whether it depends on no other tensors of the candidate than those that it shows.
        doubt: the name of an earlier tensor of a wrong shape, for which the expected one stands in; "" if none.
    """

    def __init__(
        self, value: np.ndarray, variance: np.ndarray, arithmetic: Arithmetic, is_direct: bool = True, doubt: str = ""
    ) -> None:
        self.value, self.variance, self.arithmetic = value, variance, arithmetic
        self.is_direct, self.doubt = is_direct, doubt

    @staticmethod
    def exact(value: np.ndarray, arithmetic: Arithmetic) -> "Rounded":
        """Wrap a candidate's own tensor.

        It counts as rounded once more, as an operand: implementations scale it, or compute the same in other forms,
        such as mean(w x) - mean(x) mean(w) instead of mean(w (x - mean(x))). Subnormal numbers may count as 0.
        """
        subnormal = np.minimum(np.abs(value), arithmetic.tiny)
        return Rounded(value, THIRD * np.square(arithmetic.result * value) + np.square(subnormal), arithmetic)

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's dtype."""
        return self.value.dtype

    @property
    def T(self) -> "Rounded":
        """The transposed matrix."""
        return self._map(np.transpose)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, key: Any) -> "Rounded":
        return self._map(lambda array: array[key])

    def __setitem__(self, key: Any, other: Any) -> None:
        self.value[key], self.variance[key] = value_of(other), self._variance_of(other)
        self._join([other])

    def __iadd__(self, other: Any) -> "Rounded":
        total: Rounded = self + other
        return total

    def reshape(self, *shape: Any) -> "Rounded":
        """Reshape, as an array does."""
        return self._map(lambda array: array.reshape(*shape))

    def swapaxes(self, one: int, other: int) -> "Rounded":
        """Swap two axes, as an array does."""
        return self._map(lambda array: array.swapaxes(one, other))

    def astype(self, _: Any) -> "Rounded":
        """Return the array itself: it is float64, whatever the candidate computes in."""
        return self

    def max(self, axis: int, keepdims: bool) -> np.ndarray:
        """Return the largest values, as exact ones: a softmax and its logarithm do not depend on them."""
        largest: np.ndarray = self.value.max(axis=axis, keepdims=keepdims)
        return largest

    def sum(self, axis: Any, keepdims: bool = False) -> "Rounded":
        """Add up along the last axis, or along all others, which are those of tokens."""
        total, squares, inherited = (
            x.sum(axis=axis, keepdims=keepdims) for x in (self.value, np.square(self.value), self.variance)
        )
        if axis == -1:
            own = sum_variance(self.arithmetic, self.shape[-1], squares, total)
        else:
            rows = self.value.reshape(-1, self.shape[-1])
            sizes, drift = np.abs(rows), np.square(np.cumsum(rows, axis=0)).mean(axis=0)
            lost = np.where(sizes < reach(self.arithmetic, squares, total), sizes, 0.0).sum(axis=0)
            own = token_sum_variance(self.arithmetic, len(rows), squares, total, drift, lost)
        return self._like(total, inherited + own, [self])

    def mean(self, axis: int, keepdims: bool) -> "Rounded":
        """Average along an axis."""
        found: Rounded = self.sum(axis, keepdims) / self.shape[axis]
        return found

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any) -> Any:
        if ufunc is np.add and method == "at":
            return inputs[0]._add_at(*inputs[1:])
        if method != "__call__" or settings:
            return NotImplemented
        values, variances = [value_of(x) for x in inputs], [self._variance_of(x) for x in inputs]
        result = ufunc(*values)
        if ufunc is np.matmul:
            (x, y), (of_x, of_y), count = values, variances, values[0].shape[-1]
            own = sum_variance(self.arithmetic, count, np.square(x) @ np.square(y), result, is_product=True)
            if x.ndim == 2:  # the gradient of a weight, a sum over tokens
                own = own + drift_variance(self.arithmetic, count, product_drift(x, y))
            variance = of_x @ np.square(y) + np.square(x) @ of_y + own
        elif ufunc is np.greater:  # within its error of a threshold, either side is right
            variance = np.where(np.abs(values[0] - values[1]) < NEAR_KINK * np.sqrt(sum(variances)), 1.0, 0.0)
            result = result.astype(np.float64)
        elif ufunc.__name__ in DERIVATIVES:
            slopes = DERIVATIVES[ufunc.__name__](*values, result)
            shares = (np.square(slope) * variance for slope, variance in zip(slopes, variances, strict=True))
            variance = sum(shares, rounding_errors(self.arithmetic, result).variance)
            if ufunc.__name__ == "erf":
                variance = variance + (ERF_ERROR * self.arithmetic.result) ** 2
        else:
            return NotImplemented
        return self._like(result, variance, inputs)

    def __array_function__(self, function: Any, _: Any, args: Any, kwargs: Any) -> Any:
        return FUNCTIONS[function](*args, **kwargs) if function in FUNCTIONS else NotImplemented

    def _add_at(self, places: np.ndarray, other: Any) -> None:
        """Add the rows of another array, text after text; see `token_sum_variance`."""
        value, count = value_of(other), np.zeros(len(self))
        squares, drift, lost = (np.zeros(self.shape) for _ in range(3))
        np.add.at(count, places, 1.0)
        for places_of_text, rows in zip(places, value, strict=True):
            np.add.at(self.value, places_of_text, rows)
            drift += np.square(self.value) / len(value)
        np.add.at(squares, places, np.square(value))
        np.add.at(self.variance, places, self._variance_of(other))
        sizes, limits = np.abs(value), reach(self.arithmetic, squares, self.value)
        np.add.at(lost, places, np.where(sizes < limits[places], sizes, 0.0))
        self.variance += token_sum_variance(self.arithmetic, count[:, None], squares, self.value, drift, lost)
        self._join([other])

    def _map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Rounded":
        """Apply a function that rearranges or selects elements."""
        return Rounded(function(self.value), function(self.variance), self.arithmetic, self.is_direct, self.doubt)

    def _like(self, value: np.ndarray, variance: np.ndarray, operands: Sequence[Any]) -> "Rounded":
        """Return an array that depends on others."""
        found = Rounded(value, variance + np.zeros(value.shape), self.arithmetic)
        found._join(operands)
        return found

    def _join(self, operands: Sequence[Any]) -> None:
        """Note what this array depends on."""
        known = [x for x in operands if isinstance(x, Rounded)]
        self.is_direct = self.is_direct and all(x.is_direct for x in known)
        self.doubt = self.doubt or next((x.doubt for x in known if x.doubt), "")

    def _variance_of(self, operand: Any) -> Any:
        """Return the variance of an operand; plain arrays of numbers are parameters."""
        if isinstance(operand, Rounded):
            return operand.variance
        return THIRD * np.square(self.arithmetic.parameters * operand) if self.arithmetic.parameters else 0.0 * operand


def value_of(array: Any) -> Any:
    """Return the numbers of an array, whether it knows its errors or not."""
    return array.value if isinstance(array, Rounded) else array


def first(operands: Sequence[Any]) -> Rounded:
    """Return the first operand that knows its errors."""
    return next(x for x in operands if isinstance(x, Rounded))


def concatenate(parts: Sequence[Any], axis: int = 0) -> Rounded:
    """See `np.concatenate`."""
    one = first(parts)
    value, variance = (np.concatenate([function(x) for x in parts], axis) for function in (value_of, one._variance_of))
    return one._like(value, variance, parts)


def where(condition: np.ndarray, x: Any, y: Any) -> Rounded:
    """See `np.where`."""
    one = first((x, y))
    value, variance = (np.where(condition, *map(function, (x, y))) for function in (value_of, one._variance_of))
    return one._like(value, variance, (x, y))


def zeros_like(array: Rounded, shape: tuple[int, ...] | None = None) -> Rounded:
    """See `np.zeros_like`; also `np.empty_like`."""
    shape = array.shape if shape is None else shape
    return Rounded(np.zeros(shape), np.zeros(shape), array.arithmetic)


FUNCTIONS |= {np.concatenate: concatenate, np.where: where, np.zeros_like: zeros_like, np.empty_like: zeros_like}
