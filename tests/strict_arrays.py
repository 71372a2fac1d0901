"""Arrays that implement NumPy's dispatch protocols as CuPy's do, and take only calls that were checked against CuPy.

Conversion to NumPy arrays and operations with NumPy arrays are errors, and so is every call that data/cupy_contract.txt
does not list. So code that runs on strict arrays runs on CuPy without a hidden copy to the host.
"""

import operator
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.exceptions import AxisError
from numpy.lib.mixins import NDArrayOperatorsMixin

TABLE = Path(__file__).parent / "data" / "cupy_contract.txt"
CHECKED = frozenset(TABLE.read_text(encoding="utf-8").splitlines())
CHECKED_NAMES = {entry.partition("(")[0] for entry in CHECKED}


class Call(NamedTuple):
    """A call that can be repeated on CuPy's arrays."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]


_recorded: dict[str, Call] | None = None
capturing: "FakeGraph | None" = None  # notes what is computed


@contextmanager
def recording() -> Iterator[dict[str, Call]]:
    """Allow every call inside the block, and collect the first of each kind by its entry in the table."""
    global _recorded
    _recorded = {}
    try:
        yield _recorded
    finally:
        _recorded = None


def check(entry: str, call: Call) -> None:
    """Refuse a call that was not checked against CuPy."""
    if _recorded is not None:
        _recorded.setdefault(entry, call)
    elif entry not in CHECKED:
        raise TypeError(
            f"{entry} was not checked against CuPy: if the model needs it, `python tests/cupy_contract.py` checks it "
            f"and adds it to {TABLE.name}"
        )


def compute(name: str, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Check a call, and make it on the host arrays."""
    host_args, host_options = unwrapped(args), {key: unwrapped(value) for key, value in options.items()}
    check(f"{name}({described_arguments(args, options)})", Call(function, args, options))
    try:
        return wrapped(noted(lambda: function(*host_args, **host_options), (*host_args, *host_options.values())))
    except IndexError as error:
        if isinstance(error, AxisError) or "out of bounds" not in str(error):
            raise
        # No IndexError, which code may handle: CuPy raises none for indices in arrays.
        raise AssertionError("an index is out of bounds, which CuPy takes modulo the size") from error


class FakeGraph:
    """A CUDA graph: operations that were noted during capture, and are repeated on the same memory by each launch.

    As on CUDA, Python does not run again: Python numbers become constants, and copies from or to the host are errors.
    """

    graphs: ClassVar[deque["FakeGraph"]] = deque(maxlen=20)  # the last ones

    def __init__(self) -> None:
        self.operations: list[tuple[Callable[[], Any], list[np.ndarray]]] = []
        self.new: list[np.ndarray] = []  # arrays that were allocated
        self.num_kernels = self.launches = 0
        self.graphs.append(self)

    def finish(self) -> None:
        """Make all results NaN, because a capture computes nothing."""
        for array in self.new:
            if array.dtype.kind not in "biu":
                array.fill(np.nan)

    def launch(self) -> None:
        self.launches += 1
        for operation, results in self.operations:
            for old, new in zip(results, arrays_in(operation()), strict=True):
                if not np.shares_memory(old, new):
                    old[...] = new


def noted(operation: Callable[[], Any], inputs: Any = ()) -> Any:
    """Run an operation on host arrays; during a capture, also note it."""
    result = operation()
    if capturing is not None:
        results, given = arrays_in(result), arrays_in(inputs)
        new = [x for x in results if not any(np.shares_memory(x, y) for y in given)]
        capturing.operations.append((operation, results))
        capturing.new += new
        capturing.num_kernels += bool(new) or not results  # the others are views
    return result


def not_during_capture(what: str) -> None:
    """Raise an error as CUDA does during a capture."""
    if capturing is not None:
        raise RuntimeError(f"operation not permitted when stream is capturing: {what}")


def arrays_in(tree: Any) -> list[np.ndarray]:
    """Return the arrays among results or arguments."""
    if isinstance(tree, list | tuple):
        return [array for item in tree for array in arrays_in(item)]
    return [tree] if isinstance(tree, np.ndarray) else []


class StrictArray(NDArrayOperatorsMixin):
    """An array on a simulated device."""

    def __init__(self, on_host: np.ndarray) -> None:
        self._array = on_host

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array, which CuPy refuses: use to_numpy")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(x, list | tuple) for x in inputs):
            raise TypeError(f"a list in np.{ufunc.__name__}: CuPy's take arrays and scalars")
        if method == "__call__":
            return compute(f"np.{ufunc.__name__}", ufunc, inputs, options)
        return compute(f"np.{ufunc.__name__}.{method}", getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, options: Any) -> Any:
        name = f"{function.__module__.replace('numpy', 'np')}.{function.__name__}"
        if function is np.asarray:  # with like=: this is how arrays are copied to the device
            (array,) = args
            check(
                f"{name}({described_arguments(args, options)}, like=array)",
                Call(function, args, {**options, "like": self}),
            )
            if isinstance(array, StrictArray):
                return array
            not_during_capture("a copy from the host")
            return StrictArray(np.array(array, **options))
        return compute(name, function, args, options)

    def __getitem__(self, key: Any) -> Any:
        return compute("ndarray.__getitem__", operator.getitem, (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        compute("ndarray.__setitem__", operator.setitem, (self, key, value), {})
        if isinstance(value, StrictArray) and any(isinstance(k, StrictArray) for k in as_tuple(key)):
            stored = self._array[unwrapped(key)]
            given = np.broadcast_to(value._array.astype(stored.dtype), stored.shape)
            assert np.array_equal(stored, given, equal_nan=True), "CuPy stores any of the values with the same index"

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("iteration over the elements of an array on the device")

    def __float__(self) -> float:
        not_during_capture("a copy to the host")
        return float(self._array)

    def __getattr__(self, name: str) -> Any:
        is_known = _recorded is not None or f"ndarray.{name}" in CHECKED_NAMES
        if name.startswith("_") or not hasattr(np.ndarray, name) or not is_known:
            raise AttributeError(
                f"strict arrays have no {name!r}: `python tests/cupy_contract.py` looks for it in CuPy"
            )
        if not callable(getattr(np.ndarray, name)):
            check(f"ndarray.{name}", Call(getattr, (self, name), {}))
            if name == "data":
                return SimpleNamespace(ptr=self._array.ctypes.data)
            return wrapped(getattr(self._array, name))

        def method(*args: Any, **options: Any) -> Any:
            if name == "astype":
                check_cast(self._array, *args)
            return compute(f"ndarray.{name}", call_method, (self, *args), options)

        def call_method(array: Any, *args: Any, **options: Any) -> Any:
            return getattr(array, name)(*args, **options)

        return method


def as_tuple(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def check_cast(array: np.ndarray, dtype: Any, *_: Any) -> None:
    """Refuse a cast whose result depends on the processor: to an integer that the dtype does not have."""
    if array.dtype.kind == "f" and np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        assert ((array >= limits.min) & (array <= limits.max)).all(), f"a cast to {limits.dtype} out of range"


def described_arguments(args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """Write the arguments of a call by their types: all that CuPy's checks depend on."""
    return ", ".join([*map(described, args), *(f"{name}={described(value)}" for name, value in options.items())])


def described(value: Any) -> str:
    match value:
        case StrictArray():
            return str(value._array.dtype)
        case np.ndarray():
            return f"host {value.dtype}"
        case np.generic():
            return f"scalar {value.dtype}"
        case slice():
            return "slice"
        case list() | tuple():  # of these only the kinds of their elements
            kinds = ", ".join(sorted(set(map(described, value))))
            return f"[{kinds}]" if isinstance(value, list) else f"({kinds})"
        case bool() | None | str():
            return repr(value)
        case type() | np.dtype():
            return f"dtype {np.dtype(value)}"
    return "..." if value is ... else type(value).__name__


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
    return tuple(map(wrapped, value)) if isinstance(value, tuple) else value
