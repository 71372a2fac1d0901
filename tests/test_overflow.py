"""Overflow inside an operation: every backend gives NaN or infinity in the rows where the golden function does.

Numbers are drawn up to the largest of the dtype. At its border the order of a sum decides: such rows are left out.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
from agreement import results
from backend_parameters import EVERYTHING, backend_on_cpu, rounded
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_chunks import small_chunks
from strategies import Operation, operations, seeds
from tolerances import OPERATIONS

from pegasusx_ref import get_backend
from pegasusx_ref.golden.normalization import layer_norm

BORDER = 16  # a sum between the largest number divided by this and times this may overflow or not
# Backends call the golden function for small inputs.
THRESHOLDS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "whole": nullcontext,
    "small chunks": small_chunks,
}
SINGLE_NUMBERS = ("embed_tokens", "add_positions", "add", "activation", "log_softmax", "cross_entropy")

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NumPy's, of overflows


def largest_of(dtype: str) -> float:
    """Return the largest number of the dtype in which a backend sums."""
    return float(np.finfo(np.float64 if dtype == "float64" else np.float32).max)


def huge(operation: Operation, seed: int, dtype: str, signs: bool = True) -> Operation:
    """Multiply arrays, or some of their rows or numbers, by powers of 10 of any size.

    Args:
        operation: with numbers of about 1.
        seed: of the powers.
        dtype: bounds the numbers, which are rounded to it.
        signs: False for numbers of one sign in a row, whose products cannot cancel.
    """
    rng = np.random.default_rng(seed)
    bound = 6e4 if dtype == "float16" else largest_of(dtype) / 4  # bfloat16 rounds up

    def enlarged(x: np.ndarray) -> np.ndarray:
        power = 10.0 ** rng.uniform(0, np.log10(bound))
        shape = [(1,), (*x.shape[:-1], 1), x.shape][rng.integers(3) if signs else rng.integers(2)]
        x = x if signs else abs(x) * rng.choice([-1, 1], (*x.shape[:-1], 1))
        x = x * np.where(rng.random(shape) < rng.choice([0.1, 0.5]), power, 1)
        return rounded(x.clip(-bound, bound), dtype)

    return Operation(
        operation.name,
        {
            name: enlarged(value) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
            for name, value in operation.arguments.items()
        },
    )


def check_rows(ops: Any, operation: Operation, decided: np.ndarray, well_conditioned: np.ndarray | bool = True) -> None:
    """Compare each row with the golden function's in the dtype in which the backend sums.

    Args:
        ops: the backend.
        operation: the call.
        decided: False for rows at the border of overflow.
        well_conditioned: False for rows whose finite results depend on rounding.
    """
    golden = get_backend("golden", dtype="float64" if ops.dtype == "float64" else "float32")
    (actual, *_), (expected, *_) = (results(each, operation, ops.dtype) for each in (ops, golden))
    is_finite, should_be = np.isfinite(actual).all(axis=-1), np.isfinite(expected).all(axis=-1)
    if ops.dtype == "float16":  # results of half precision also overflow where they are rounded
        decided = decided & (abs(expected).max(axis=-1, initial=0) < np.finfo(np.float16).max)
    np.testing.assert_array_equal(is_finite[decided], should_be[decided])
    compared = decided & is_finite & well_conditioned
    scale = abs(expected[compared]).max(axis=-1, keepdims=True, initial=1)
    for name, value in operation.arguments.items():
        if "v_BH" in name:  # values may cancel
            scale = np.maximum(scale, abs(value).max())
    assert (abs(actual - expected)[compared] <= 10 * OPERATIONS[operation.name][ops.dtype] * scale + 1e-30).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE_NUMBERS)
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@settings(max_examples=10)
@given(st.data())
def test_operations_on_single_numbers(backend: str, dtype: str, name: str, data: st.DataObject) -> None:
    operation = huge(data.draw(operations(name)), data.draw(seeds), dtype)
    ops = backend_on_cpu(backend, dtype)
    (found,), (expected,) = (results(each, operation, dtype) for each in (ops, get_backend("golden", dtype="float64")))
    if name == "cross_entropy":  # a mean whose sum overflows is not finite, but need not be infinite either
        assume(not largest_of(dtype) / operation.arguments["labels_BL"].size < abs(expected) <= largest_of(dtype))
    expected = np.where(abs(expected) <= largest_of(dtype), expected, np.inf)
    if dtype == "float16" and name == "activation":
        expected = np.where(abs(expected) <= np.finfo(np.float16).max, expected, np.inf)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@settings(max_examples=10)
@given(operations("layer_norm"), seeds)
def test_layer_norm(backend: str, dtype: str, operation: Operation, seed: int) -> None:
    operation = huge(operation, seed, dtype)
    x = operation.arguments["x_BTD"].astype(np.longdouble)
    squares = ((x - x.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1) / np.longdouble(largest_of(dtype))
    sums = abs(x).sum(axis=-1) / largest_of(dtype)
    decided = ((squares < 1 / BORDER) | (squares > BORDER)) & ((sums < 1 / BORDER) | (sums > BORDER))
    spread = abs(x - x.mean(axis=-1, keepdims=True)).max(axis=-1)
    check_rows(backend_on_cpu(backend, dtype), operation, decided, spread > 1e-3 * abs(x).max(axis=-1))


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("width", [4, 33, 768])
@pytest.mark.parametrize("fraction", [0.6, 0.9])
def test_layer_norm_of_a_variance_that_overflows_is_nan(backend: str, dtype: str, width: int, fraction: float) -> None:
    """And rows beside it are as they were, as is a row of equal numbers, whose variance is 0."""
    power = 4 if dtype == "float16" else np.log10(largest_of(dtype)) * fraction
    ops = backend_on_cpu(backend, dtype)
    x = np.random.default_rng(0).standard_normal((2, 3, width))
    ordinary = ops.asarray(rounded(x, dtype))
    x[0, 1] *= 10.0**power
    x[1, 0] = 2.0 ** int(power * 3.3)
    weight, bias = (ops.asarray(rounded(v, dtype)) for v in (np.ones(width), np.full(width, 0.5)))
    found = np.asarray(ops.to_numpy(ops.layer_norm(ops.asarray(rounded(x, dtype)), weight, bias, 1e-5)))
    before = np.asarray(ops.to_numpy(ops.layer_norm(ordinary, weight, bias, 1e-5)))
    if dtype != "float16":  # it holds no number whose square overflows float32
        assert np.isnan(found[0, 1]).all()
    assert (found[1, 0] == 0.5).all()
    found[0, 1], found[1, 0] = before[0, 1], before[1, 0]
    assert found.tobytes() == before.tobytes()


def test_the_golden_layer_norm_hid_an_overflow() -> None:
    """Without its line on the variance the result is the bias, whatever the input."""
    x, ones = np.array([[[1e30, 2e30, -3e30, 5.0]]], dtype=np.float32), np.ones(4, np.float32)
    assert np.isnan(layer_norm(x, ones, ones, 1e-5)).all()
    x64 = x.astype(np.float64)
    assert np.isfinite(layer_norm(x64, ones, ones, 1e-5)).all()


@pytest.mark.parametrize("name", ["linear", "linear_full_precision"])
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@settings(max_examples=10)
@given(data=st.data())
def test_products(backend: str, dtype: str, name: str, data: st.DataObject) -> None:
    """A finite number is right, and one whose terms are in range is finite."""
    operation = huge(data.draw(operations(name)), data.draw(seeds), dtype)
    x, weight, bias = (operation.arguments[key] for key in ("x", "weight", "bias"))
    wide = [np.zeros(1, np.longdouble) if a is None else a.astype(np.longdouble) for a in (x, weight, bias)]
    exact, terms = wide[0] @ wide[1].T + wide[2], abs(wide[0]) @ abs(wide[1]).T + abs(wide[2])
    (found,) = results(backend_on_cpu(backend, dtype), operation, dtype)
    limit = np.finfo(np.float16).max if dtype == "float16" and name == "linear" else largest_of(dtype)
    assert np.isfinite(found[terms < limit / BORDER]).all()
    is_finite = np.isfinite(found)
    assert (abs(found - exact)[is_finite] <= OPERATIONS[name][dtype] * 3 * terms[is_finite] + 1e-7).all()


def decided_queries(q: Any, k: Any, v: Any, visible: Any, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return for each query (B, H, L) whether no score is at the border, and whether rounding cannot reorder scores."""
    q, k = q.astype(np.longdouble), k.astype(np.longdouble)
    scores = (q * q.shape[3] ** -0.5) @ k.swapaxes(2, 3)
    size, largest = abs(scores), np.longdouble(largest_of(dtype))
    at_border = visible & (size > largest / BORDER) & (size < largest * BORDER)
    in_range = np.where(visible & (size <= largest), scores, -np.inf)
    best, second = np.sort(np.concatenate([in_range, np.full_like(in_range, -np.inf)], axis=3), axis=3)[..., [-1, -2]].T
    near = (best - second < 1e-2 * abs(best)).T & (size.max(axis=3) > 100)
    values = abs(v).sum(axis=2).max(axis=2)[:, :, None] > largest_of(dtype) / BORDER
    return ~at_border.any(axis=3) & ~values, ~near


@pytest.mark.slow
@pytest.mark.parametrize("chunks", THRESHOLDS)
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@settings(max_examples=15)
@given(data=st.data())
def test_attention(backend: str, dtype: str, chunks: str, data: st.DataObject) -> None:
    operation = huge(data.draw(operations("attention")), data.draw(seeds), dtype, signs=False)
    q, k, v, visible = operation.arguments.values()
    all_visible = np.ones((1, 1, k.shape[2]), dtype=bool) if visible is None else visible
    decided, distinct = decided_queries(q, k, v, all_visible[:, None], dtype)
    with THRESHOLDS[chunks]():
        check_rows(backend_on_cpu(backend, dtype), operation, decided, distinct)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", THRESHOLDS)
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@settings(max_examples=15)
@given(data=st.data())
def test_attention_core(backend: str, dtype: str, chunks: str, data: st.DataObject) -> None:
    operation = huge(data.draw(operations("global_local_attention")), data.draw(seeds), dtype, signs=False)
    q, k, v, _, global_k, global_v, mask, blocks = operation.arguments.values()
    G, T = global_k.shape[2], q.shape[2]
    block_T = np.searchsorted([stop for _, stop in blocks], np.arange(T), side="right")
    visible = np.concatenate([np.ones((T, G), dtype=bool), block_T[:, None] == block_T], axis=1)[None, None]
    if mask is not None:
        visible = visible & np.concatenate([np.ones((len(mask), G), dtype=bool), mask], axis=1)[:, None, None]
    keys, values = np.concatenate([global_k, k], axis=2), np.concatenate([global_v, v], axis=2)
    decided, distinct = decided_queries(q, keys, values, visible, dtype)
    with THRESHOLDS[chunks]():
        check_rows(backend_on_cpu(backend, dtype), operation, decided, distinct)


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("num_queries", [1, 3, 40])
def test_a_query_whose_unmasked_scores_are_all_minus_infinity_gets_nan(
    backend: str, dtype: str, num_queries: int
) -> None:
    """It must not attend to the masked keys, whose score is the lowest finite number."""
    if dtype == "float16":
        pytest.skip("products of float16 do not overflow float32")
    ops, root = backend_on_cpu(backend, dtype), 10.0 ** (np.log10(largest_of(dtype)) * 0.7)
    q, k, v = np.full((1, 2, num_queries, 8), root), np.full((1, 2, 5, 8), -root), np.ones((1, 2, 5, 8))
    q[:, 1] = 1  # the other head is not affected
    k[:, 1] = 1
    visible = np.array([[[True, True, False, False, True]]])
    for mask in (visible, None):
        for thresholds in THRESHOLDS.values():
            with thresholds():
                context = ops.attention(*map(ops.asarray, (q, k, v)), None if mask is None else ops.asarray(mask))
            context = np.asarray(ops.to_numpy(context))
            assert np.isnan(context[:, 0]).all()
            assert (context[:, 1] == 1).all()


def test_layer_norm_on_torch_without_reading_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, whose kernels are tested in tests/gpu."""
    pytest.importorskip("torch")
    monkeypatch.setattr("pegasusx_torch.normalization.may_read", lambda tensor: False)
    ops = backend_on_cpu("torch", "float32")
    x = np.random.default_rng(0).standard_normal((1, 3, 33)).astype(np.float32)
    x[0, 1] *= np.float32(1e30)
    weight, bias = np.ones(33, np.float32), np.full(33, 0.5, np.float32)
    found = ops.to_numpy(ops.layer_norm(*map(ops.asarray, (x, weight, bias)), 1e-5))
    assert np.isnan(found[0, 1]).all()
    assert np.isfinite(found[0, [0, 2]]).all()


@pytest.mark.parametrize(("backend", "dtype"), [each for each in EVERYTHING if each.values[1] == "float32"])
@pytest.mark.parametrize("case", ["one huge query", "scores of -inf"])
def test_global_tokens_whose_scores_overflow(backend: str, dtype: str, case: str) -> None:
    """A part of the keys may hide the overflow: its kernel gives 0 where all scores are -inf."""
    rng = np.random.default_rng(0)
    lengths = dict.fromkeys(("q", "k", "v"), 16) | dict.fromkeys(("global_q", "global_k", "global_v"), 4)
    arrays = {name: rng.standard_normal((1, 2, length, 8), dtype=np.float32) for name, length in lengths.items()}
    if case == "one huge query":
        arrays["global_q"][0, 0, 0] = 1e38
    else:
        arrays["global_q"][0, 0] = 1e3
        arrays["k"][0, 0] = arrays["global_k"][0, 0] = -1e38
    blocks = [(0, 8), (8, 16)]
    golden: Any = get_backend("golden", dtype=dtype)
    expected = golden.global_local_attention(*arrays.values(), None, blocks)[1]
    ops = backend_on_cpu(backend, dtype)
    found = ops.to_numpy(ops.global_local_attention(*map(ops.asarray, arrays.values()), None, blocks)[1])
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
