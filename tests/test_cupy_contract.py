"""Every call on CuPy's arrays is one that the installed CuPy takes, and relies on nothing in which CuPy differs.

The differences are those of https://docs.cupy.dev/en/stable/user_guide/difference.html, and a few of its reference.
No GPU is needed. `python tests/cupy_contract.py` writes the table of calls.
"""

import ast
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulated
import fake_cupy
import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin
from strict_arrays import CHECKED, Call, StrictArray, recording

IN_CI = bool(os.environ.get("CI"))
if not IN_CI:
    pytest.importorskip("cupy", reason="CuPy is not installed: pip install -e '.[cupy]'")
contract = importlib.import_module("cupy_contract")
cupy = contract.cupy

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FILES = [
    path for folder in ("backends/pegasusx_cupy", "pegasusx_ref") for path in sorted((ROOT / folder).rglob("*.py"))
]
USERS = [path for path in FILES if re.search(r"^ *(import|from) cupy", path.read_text(encoding="utf-8"), re.MULTILINE)]
needs_compiler = pytest.mark.skipif(emulated.COMPILER is None and not IN_CI, reason=emulated.NO_COMPILER)


def strict(values: Any, dtype: Any = None) -> StrictArray:
    return StrictArray(np.array(values, dtype=dtype))


X = strict([[0.5, -1.5, 2.0], [1.0, 3.0, -2.5]])


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calls() -> dict[str, Call]:
    recorded: dict[str, Call] = contract.recorded_calls()
    return recorded


@needs_compiler
def test_the_table_lists_what_the_model_calls(calls: dict[str, Call]) -> None:
    """If not, `python tests/cupy_contract.py` checks the new calls and writes the table anew."""
    assert {"not checked": calls.keys() - CHECKED, "not called": CHECKED - calls.keys()} == {
        "not checked": set(),
        "not called": set(),
    }


@needs_compiler
def test_cupy_takes_every_call(calls: dict[str, Call]) -> None:
    assert {entry: why for entry, call in calls.items() if (why := contract.problem(call))} == {}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "function": (lambda: np.insert(X, 0, 1), "no implementation found"),
    "keyword of a function": (lambda: np.sum(X, initial=1), "unexpected keyword argument 'initial'"),
    "value of a keyword": (lambda: np.argsort(X, kind="quicksort"), "kind can only be None or 'stable'"),
    "ufunc": (lambda: np.spacing(X), "returned NotImplemented"),
    "keyword of a ufunc": (lambda: np.add(X, 1, where=True), "Wrong arguments {'where': True}"),
    "dtypes of a ufunc": (lambda: np.exp(strict([1], np.longdouble)), "cupy.exp takes no"),
    "method of a ufunc": (lambda: np.add.reduce(X, initial=1), "unexpected keyword argument 'initial'"),
    "method": (lambda: X.setfield(1, np.float64), "no attribute 'setfield'"),
    "keyword of a method": (lambda: X.mean(where=True), "unexpected keyword argument 'where'"),
    "number of arguments": (lambda: X.item(0, 1), "takes exactly 0 positional arguments (2 given)"),
    "dtype": (lambda: strict(["text"]).reshape(1), "Unsupported dtype"),
    "attribute": (lambda: X.ctypes, "no attribute 'ctypes'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_call_that_cupy_refuses_is_found(what: str) -> None:
    call, message = REFUSED[what]
    with recording() as calls:
        call()
    assert message in str([contract.problem(each) for each in calls.values()])


def test_strict_arrays_take_the_calls_of_the_table_alone() -> None:
    assert isinstance(np.exp(X), StrictArray)
    refused: dict[str, Callable[[], Any]] = {
        "np.exp2(float64)": lambda: np.exp2(X),
        "np.pad(float64, int, mode='edge')": lambda: np.pad(X, 1, mode="edge"),
        "ndarray.max(float64, initial=int)": lambda: X.max(initial=3),
        "np.exp(int8)": lambda: np.exp(strict([1], np.int8)),
        "ndarray.__getitem__(float64, (..., slice))": lambda: X[..., 1:],
    }
    for entry, call in refused.items():
        with pytest.raises(TypeError, match=re.escape(f"{entry} was not checked against CuPy: if the model needs it")):
            call()
    with pytest.raises(AttributeError, match="strict arrays have no 'cumsum'"):
        X.cumsum()


# --- what the backend and the benchmarks take from CuPy itself -------------------------------------------------------


def direct_uses(source: str) -> Iterator[tuple[str, ast.Call | None]]:
    """Yield the names of CuPy in a module, as "cupy.cuda.Device.synchronize", and the calls of functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and re.match("cupyx?\\b", node.module or ""):
            yield from ((f"{node.module}.{alias.name}", None) for alias in node.names)
        elif isinstance(node, ast.Attribute | ast.Call):
            name = ast.unparse(node if isinstance(node, ast.Attribute) else node.func).replace("()", "")
            if re.fullmatch(r"cupy(\.\w+)+", name):
                yield name, node if isinstance(node, ast.Call) else None


def found(name: str) -> Any:
    """Return the module, function or attribute of a name; None where it needs a library that comes with CUDA."""
    try:
        return pkgutil.resolve_name(name)
    except ImportError as error:
        if contract.is_for_lack_of_a_gpu(error):
            return None
        raise


def parameters(function: Any) -> list[str]:
    """Return the names of a function's parameters; for compiled ones from the first line of the documentation."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        line = function.__doc__.splitlines()[0]
        listed = line[line.index("(") + 1 : line.rindex(")")].split(", ")
        return [part.partition("=")[0].split()[-1] for part in listed if part not in ("", "*", "self")]


@pytest.mark.parametrize("path", USERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_cupy_has_what_a_module_uses(path: Path) -> None:
    for name, call in direct_uses(path.read_text(encoding="utf-8")):
        function = found(name)
        if function and call:
            names = parameters(function)
            assert len(call.args) <= len(names), name
            assert {keyword.arg for keyword in call.keywords} <= set(names), name


def test_direct_uses_are_found() -> None:
    names = {name for path in USERS for name, _ in direct_uses(path.read_text(encoding="utf-8"))}
    assert names >= {"cupy.RawModule", "cupy.cuda.Device.synchronize", "cupyx.scipy.special.erf"}
    ((name, call),) = (use for use in direct_uses("cupy.empty(3, fill=0)") if use[1])
    assert name == "cupy.empty"
    assert call is not None
    assert call.keywords[0].arg not in parameters(cupy.empty)


def test_cupy_has_what_its_replacement_has() -> None:
    """So that tests/fake_cupy.py offers nothing that is missing at last."""
    for name, fake in fake_cupy.fake_modules(1).items():
        for part, value in vars(fake).items():
            real = found(name) and not part.startswith("__") and found(f"{name}.{part}")
            if isinstance(value, type) and value.__module__ == "fake_cupy":
                methods = [m for m, function in vars(value).items() if inspect.isfunction(function) and m[0] != "_"]
                assert [m for m in methods if not hasattr(real, m)] == [], f"{name}.{part}"


# --- differences between CuPy and NumPy ------------------------------------------------------------------------------


def test_indices_out_of_bounds_wrap_around() -> None:
    """CuPy takes them modulo the size and NumPy raises an IndexError: no code may rely on either."""
    for rows in ([0, 2], [-3, 0]):
        with pytest.raises(AssertionError, match="out of bounds"):
            X[strict(rows)]
    with pytest.raises(AssertionError, match="out of bounds"):
        np.take_along_axis(X, strict([[0], [3]]), axis=1)  # type: ignore[arg-type]


def test_equal_indices_store_any_of_their_values() -> None:
    scores = strict([[1.0, 2.0, 3.0]], np.float32)
    rows, columns = strict([[0, 0]]), strict([[1, 1]])
    scores[rows, columns] = -np.inf
    scores[rows, columns] = scores[rows, columns]  # one value, stored twice
    with pytest.raises(AssertionError, match="any of the values"):
        scores[rows, columns] = strict([[5.0, 6.0]], np.float32)


def test_casts_of_numbers_that_an_integer_dtype_lacks_depend_on_the_processor() -> None:
    for value, dtype in ((-1.0, np.uint32), (np.inf, np.int32), (np.nan, np.int64), (300.0, np.uint8)):
        with recording(), pytest.raises(AssertionError, match="out of range"):
            strict([0.0, value]).astype(dtype)
    with recording():
        assert strict([3.7]).astype(np.int32).dtype == np.int32


def test_reductions_and_elements_are_arrays_without_dimensions() -> None:
    with recording():
        for result in (X.sum(), X.max(axis=-1)[0], X[0, 1]):
            assert isinstance(result, StrictArray)
            assert result.shape == ()
    assert isinstance(contract.on_cupy(X)[0, 1], cupy.ndarray)


def test_ufuncs_take_arrays_and_scalars_only() -> None:
    for other in ([1.0, 2.0, 3.0], (1.0, 2.0, 3.0), np.ones(3)):
        with recording(), pytest.raises(TypeError, match=r"a list in np.add|a host array"):
            np.add(X, other)


def test_numpy_s_scalars_have_the_dtype_of_the_arrays() -> None:
    """Beside a float32 array a float64 scalar makes the result float64 in CuPy 14, and leaves it float32 in CuPy 13."""
    for entry in CHECKED:
        scalar = re.search(r"scalar (\w+)", entry)
        assert scalar is None or scalar[1] in re.sub(r"scalar \w+", "", entry), entry


def test_nothing_is_used_that_cupy_does_not_have_or_promise() -> None:
    """No dtypes but numbers; no random numbers, which differ; no order in memory, which results do not keep.

    Reductions of complex numbers order NaN differently; there are none.
    """
    pattern = r"object|str\d|complex|datetime|void|np\.random|matrix|ndarray\.(flags|base)|order="
    assert [entry for entry in CHECKED if re.search(pattern, entry)] == []


def test_operators_are_those_of_the_ufuncs() -> None:
    """An expression on CuPy's arrays calls an operator of theirs, which on strict arrays is a ufunc."""
    operators = [name for name in vars(NDArrayOperatorsMixin) if name.startswith("__") and name != "__imatmul__"]
    assert len(operators) > 40
    assert [name for name in operators if not hasattr(cupy.ndarray, name)] == []
