"""Arrays that implement NumPy's dispatch protocols as CuPy's do, and nothing more.

Conversion to NumPy arrays, operations with NumPy arrays, and functions that CuPy does not document are errors. So code
that runs on strict arrays runs on CuPy without a hidden copy to the host.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

# The part of CuPy's "comparison table" that an implementation of the model might use.
FUNCTIONS = {
    *("asarray", "broadcast_to", "concatenate", "stack", "tile", "pad", "roll", "expand_dims", "squeeze", "swapaxes"),
    *("where", "take", "take_along_axis", "sum", "mean", "var", "max", "min", "amax", "amin", "argmax", "cumsum"),
    *("empty_like", "zeros_like", "ones_like", "full_like", "reshape", "transpose", "einsum", "clip", "any", "all"),
    *("sort", "argsort", "repeat"),
}
UFUNCS = {
    *("add", "subtract", "multiply", "divide", "true_divide", "negative", "power", "square", "sqrt", "absolute"),
    *("exp", "log", "tanh", "sin", "cos", "maximum", "minimum", "matmul", "reciprocal", "floor_divide", "remainder"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_not", "logical_and"),
    *("logical_or", "bitwise_and", "bitwise_or", "right_shift", "invert", "isnan", "isfinite"),
}
METHODS = {
    *("reshape", "swapaxes", "transpose", "astype", "view", "copy", "sum", "mean", "max", "min", "any", "all"),
    *("argmax", "clip"),
}


class StrictArray(NDArrayOperatorsMixin):
    """An array on a simulated device."""

    def __init__(self, on_host: np.ndarray) -> None:
        self._array = on_host

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array, which CuPy refuses: use to_numpy")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            raise TypeError(f"CuPy does not document np.{ufunc.__name__}.{method}")
        return wrapped(ufunc(*map(unwrapped, inputs), **{name: unwrapped(value) for name, value in options.items()}))

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, options: Any) -> Any:
        if function.__name__ not in FUNCTIONS:
            raise TypeError(f"CuPy does not document np.{function.__name__}")
        if function is np.asarray:  # with like=: this is how arrays are copied to the device
            (on_host,) = args
            assert isinstance(on_host, np.ndarray | StrictArray)
            return on_host if isinstance(on_host, StrictArray) else StrictArray(np.array(on_host, **options))
        return wrapped(function(*map(unwrapped, args), **{name: unwrapped(value) for name, value in options.items()}))

    def __getitem__(self, key: Any) -> Any:
        return wrapped(self._array[unwrapped(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._array[unwrapped(key)] = unwrapped(value)

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("iteration over the elements of an array on the device")

    def __float__(self) -> float:
        return float(self._array)

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "dtype", "ndim", "size", "itemsize", "nbytes", "flags", "strides"):
            return getattr(self._array, name)
        if name == "data":
            return SimpleNamespace(ptr=self._array.ctypes.data)
        if name in ("T", "mT"):
            return wrapped(getattr(self._array, name))
        if name in METHODS:
            method = getattr(self._array, name)
            return lambda *args, **options: wrapped(
                method(*map(unwrapped, args), **{key: unwrapped(value) for key, value in options.items()})
            )
        raise AttributeError(f"strict arrays have no {name!r}: add it if CuPy's arrays have it")


def unwrapped(value: Any) -> Any:
    """Return the host arrays inside strict arrays; a plain host array is an error."""
    if isinstance(value, StrictArray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError("a host array among arrays of the device")
    if isinstance(value, list | tuple):
        return type(value)(unwrapped(item) for item in value)
    return value


def wrapped(value: Any) -> Any:
    """Wrap host arrays in strict arrays, including those without dimensions, as CuPy does."""
    if isinstance(value, np.ndarray | np.generic):
        return StrictArray(np.asarray(value))
    return value
