"""Error bounds and variances: no correct implementation exceeds them, in whatever order it sums."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegasusx_ref.golden import feed_forward
from pegasusx_ref.golden.attention import softmax
from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.verification.checking import error_bounds
from pegasusx_ref.verification.checking.arithmetics import ARITHMETICS
from pegasusx_ref.verification.checking.error_bounds import Errors
from pegasusx_ref.verification.verdicts import WARN

pytestmark = pytest.mark.slow

NAMES = ["float32", "tf32", "bfloat16", "float16"]  # float64 needs longdouble: see below
KINDS: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def rounded(name: str, x: np.ndarray) -> np.ndarray:
    """Round to the arithmetic's dtype."""
    return x.astype(KINDS.get(name, np.float32)).astype(np.float32)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Round float32 to 10 fraction bits, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + 0x0FFF + ((bits >> 13) & 1)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def in_order(terms: np.ndarray) -> np.ndarray:
    """Sum the last axis in float32 from left to right."""
    return np.add.accumulate(terms, axis=-1, dtype=np.float32)[..., -1]


def backwards(terms: np.ndarray) -> np.ndarray:
    return in_order(terms[..., ::-1])


def in_pairs(terms: np.ndarray) -> np.ndarray:
    while terms.shape[-1] > 1:
        half = terms.shape[-1] // 2
        paired = terms[..., :half] + terms[..., half : 2 * half]
        terms = np.concatenate([paired, terms[..., 2 * half :]], axis=-1)
    return terms[..., 0]


SUMS: list[Callable[[np.ndarray], np.ndarray]] = [in_order, backwards, in_pairs]
sums = pytest.mark.parametrize("total", SUMS, ids=lambda f: f.__name__)
seeds = st.integers(0, 2**32 - 1)
spreads = st.sampled_from([1e-3, 1.0, 30.0])


def check(found: np.ndarray, exact: np.ndarray, errors: Errors) -> float:
    """Check that no element exceeds its bound, and return the largest rho of a row."""
    error = np.abs(found.astype(np.float64) - exact)
    assert (error <= errors.bound).all(), (error / errors.bound).max()
    rhos = np.sqrt((error**2).sum(axis=-1) / errors.variance.sum(axis=-1))
    assert rhos.max() <= WARN
    return float(rhos.max())


@sums
@pytest.mark.parametrize("name", NAMES)
@given(seeds, spreads, st.integers(1, 400))
def test_products(name: str, total: Callable[[np.ndarray], np.ndarray], seed: int, spread: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    spread = min(spread, 3.0) if name == "float16" else spread  # it ends at 65504
    x, w = (rounded(name, rng.normal(rng.normal(), spread, shape)) for shape in ((3, n), (n, 8)))
    inside = (to_tf32(x), to_tf32(w)) if name == "tf32" else (x, w)
    found = rounded(name, total(inside[0][:, None, :] * inside[1].T[None]))
    x, w = x.astype(np.float64), w.astype(np.float64)
    check(found, x @ w, error_bounds.product_errors(ARITHMETICS[name], x, w, x @ w))


@sums
@given(seeds, st.integers(50, 300))
def test_products_whose_terms_cancel(total: Callable[[np.ndarray], np.ndarray], seed: int, n: int) -> None:
    """The result is 0, but the partial sums are not: their rounding errors remain."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(3, n)).astype(np.float32), rng.normal(size=(n, 8)).astype(np.float32)
    x, w = np.concatenate([x, x], axis=1), np.concatenate([w, -w])
    found = total(x[:, None, :] * w.T[None])
    x, w = x.astype(np.float64), w.astype(np.float64)
    check(found, np.zeros((3, 8)), error_bounds.product_errors(ARITHMETICS["float32"], x, w, np.zeros((3, 8))))


@sums
@pytest.mark.parametrize("name", NAMES)
@given(seeds, spreads, st.integers(1, 600))
def test_softmax(name: str, total: Callable[[np.ndarray], np.ndarray], seed: int, spread: float, n: int) -> None:
    scores = rounded(name, np.random.default_rng(seed).normal(0, spread, (4, n)))
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found = rounded(name, exponentials / total(exponentials)[:, None])
    exact = softmax(scores.astype(np.float64))
    check(found, exact, error_bounds.softmax_errors(ARITHMETICS[name], scores.astype(np.float64), exact))


@sums
@pytest.mark.parametrize("name", NAMES)
@given(seeds, spreads, st.integers(2, 600), st.sampled_from([1e-5, 1e-12]))
def test_layer_norm(
    name: str, total: Callable[[np.ndarray], np.ndarray], seed: int, spread: float, n: int, eps: float
) -> None:
    rng = np.random.default_rng(seed)
    x = rounded(name, rng.normal(rng.normal() * spread, spread, (1, 4, n)))
    weight, bias = (rounded(name, rng.normal(1, 0.3, n)) for _ in range(2))
    centered = x - (total(x) / np.float32(n))[..., None]
    variance = (total(centered * centered) / np.float32(n))[..., None]
    found = rounded(name, centered / np.sqrt(variance + np.float32(eps)) * weight + bias)
    x, weight, bias = (array.astype(np.float64) for array in (x, weight, bias))
    exact = layer_norm(x, weight, bias, float(np.float32(eps)))
    check(found, exact, error_bounds.layer_norm_errors(ARITHMETICS[name], x, weight, bias, eps, exact))


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
@pytest.mark.parametrize("name", NAMES)
@given(seeds, st.sampled_from([1e-3, 1.0, 5.0]))
def test_activations(name: str, activation: str, seed: int, spread: float) -> None:
    x = rounded(name, np.random.default_rng(seed).normal(0, spread, (4, 64)))
    found = rounded(name, feed_forward.activation(x, activation))
    exact = feed_forward.activation(x.astype(np.float64), activation)
    errors = error_bounds.activation_errors(ARITHMETICS[name], activation, x.astype(np.float64), exact)
    if activation == "relu":
        assert (found == exact).all()
    check(found, exact, errors)


@pytest.mark.parametrize("name", NAMES)
@given(seeds)
def test_positions_that_are_rounded_once_or_twice(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, p = rounded(name, rng.normal(size=(5, 16))), rng.uniform(-1, 1, (5, 16))
    exact = x + p
    errors = error_bounds.position_errors(ARITHMETICS[name], p, exact, 4)
    check(rounded(name, exact), exact, errors)
    check(rounded(name, x + rounded(name, p)), exact, errors)


@given(seeds)
def test_float64_against_longdouble(seed: int) -> None:
    """The formulas are the same for every arithmetic; float64 needs longdouble with more digits."""
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("longdouble is float64 here")
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(3, 200)), rng.normal(size=(200, 8))
    exact = x.astype(np.longdouble) @ w.astype(np.longdouble)
    errors = error_bounds.product_errors(ARITHMETICS["float64"], x, w, x @ w)
    error = np.abs(np.add.accumulate(x[:, None] * w.T[None], axis=-1)[..., -1] - exact).astype(np.float64)
    assert (error <= errors.bound).all()
    assert np.sqrt((error**2).sum(-1) / errors.variance.sum(-1)).max() <= WARN


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_error_is_not_too_large(name: str) -> None:
    """A variance that is far too large would never be exceeded, and detect nothing."""
    rng = np.random.default_rng(0)
    x, w = (rounded(name, rng.normal(size=shape)) for shape in ((50, 300), (300, 60)))
    inside = (to_tf32(x), to_tf32(w)) if name == "tf32" else (x, w)
    found = rounded(name, in_order(inside[0][:, None, :] * inside[1].T[None]))
    x, w = x.astype(np.float64), w.astype(np.float64)
    assert check(found, x @ w, error_bounds.product_errors(ARITHMETICS[name], x, w, x @ w)) > 0.5
