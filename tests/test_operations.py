"""Golden functions other than attention, each against an independent computation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from tolerances import OPERATION, assert_close

from pegasusx_ref.golden.embedding import add_positions, embed_tokens, sinusoidal_positions
from pegasusx_ref.golden.feed_forward import ACTIVATIONS, activation, linear
from pegasusx_ref.golden.head import cross_entropy, log_softmax, shift_tokens_right
from pegasusx_ref.golden.normalization import layer_norm

by_definition: dict[str, Callable[[float], float]] = {
    "relu": lambda x: x if x > 0 else 0.0,
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_new": lambda x: x / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + math.exp(-x)),
}
by_definition |= {"gelu_pytorch_tanh": by_definition["gelu_new"], "swish": by_definition["silu"]}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_their_definitions(name: str) -> None:
    x = np.random.default_rng(0).uniform(-5, 5, (7, 31))
    expected = np.vectorize(by_definition[name])(x)
    # Near -5 the textbook forms lose digits in 1 + erf: compare on the scale of x.
    assert np.abs(activation(x, name) - expected).max() <= 1e-14


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_keep_dtype_and_survive_extremes(name: str, dtype: str) -> None:
    x = np.array([-1e12, -100.0, -0.0, 0.0, 100.0, 1e12], dtype=dtype)
    with np.errstate(all="raise", under="ignore"):
        y = activation(x, name)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, np.where(x > 0, x, 0), atol=1e-30)


def test_positions_are_sines_then_cosines_of_geometric_frequencies() -> None:
    D, start = 12, 4090
    positions = sinusoidal_positions(start, 9, D)
    assert positions.dtype == np.float64
    for row in range(9):
        for k in range(D // 2):
            angle = (start + row) * 10000.0 ** (-k / (D // 2 - 1))
            assert abs(positions[row, k] - math.sin(angle)) < 1e-11
            assert abs(positions[row, D // 2 + k] - math.cos(angle)) < 1e-11


def test_positions_are_added_exactly_and_rounded_once() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 8)).astype(np.float32)
    exact = x.astype(np.float64) + sinusoidal_positions(16000, 3, 8)
    assert (add_positions(x, 16000) == exact.astype(np.float32)).all()
    rounded_twice = x + sinusoidal_positions(16000, 3, 8).astype(np.float32)
    assert (add_positions(x, 16000) != rounded_twice).any()


def test_embedding_scales_rows_of_the_table() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((9, 4)).astype(np.float32)
    ids = rng.integers(0, 9, (2, 5))
    embedded = embed_tokens(ids, table, 3.0)
    assert embedded.dtype == np.float32
    assert (embedded[1, 2] == table[ids[1, 2]] * 3).all()


@given(seeds, st.sampled_from([1e-5, 1e-12]), st.sampled_from([0.0, 100.0]))
def test_layer_norm_by_its_definition(seed: int, eps: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.standard_normal((2, 3, 10)) * 0.1 + offset, rng.standard_normal(10), rng.standard_normal(10)
    normed = layer_norm(x, weight, bias, eps)
    row = [float(v) for v in x[1, 2]]
    mean = math.fsum(row) / 10
    variance = math.fsum((v - mean) ** 2 for v in row) / 10
    expected = [(v - mean) / math.sqrt(variance + eps) * w + b for v, w, b in zip(row, weight, bias, strict=True)]
    # With an offset of 100, x - mean loses three digits.
    assert_close("row", normed[1, 2], expected, OPERATION * (1 + 100 * offset))


@given(seeds)
def test_linear_sums_products(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.standard_normal((2, 3, 4)), rng.standard_normal((5, 4)), rng.standard_normal(5)
    expected = math.fsum(float(a) * float(b) for a, b in zip(x[1, 2], weight[3], strict=True))
    assert abs(linear(x, weight)[1, 2, 3] - expected) < 1e-13
    assert abs(linear(x, weight, bias)[1, 2, 3] - expected - bias[3]) < 1e-13


@given(seeds, st.sampled_from([1.0, 1000.0]))
def test_log_softmax_and_cross_entropy_by_their_definitions(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((2, 3, 7)) * scale
    labels = rng.integers(0, 7, (2, 3))
    labels[0, 1] = -100
    losses = []
    for b, t in np.argwhere(labels != -100):
        row = [float(v) for v in logits[b, t]]
        normalizer = max(row) + math.log(math.fsum(math.exp(v - max(row)) for v in row))
        assert_close("log_softmax", log_softmax(logits)[b, t], [v - normalizer for v in row], OPERATION)
        losses.append(normalizer - row[labels[b, t]])
    assert_close("cross_entropy", cross_entropy(logits, labels), math.fsum(losses) / len(losses), OPERATION)


def test_padding_counts_in_the_loss_and_minus_100_does_not() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 3, 5))
    with_padding = cross_entropy(logits, np.array([[2, 0, 0]]))
    ignoring = cross_entropy(logits, np.array([[2, -100, -100]]))
    assert_close("ignored", ignoring, -log_softmax(logits)[0, 0, 2], OPERATION)
    assert abs(with_padding - ignoring) > 1e-3


def test_labels_shift_right_behind_the_start_token() -> None:
    labels = np.array([[5, 6, -100, -100], [7, -100, 8, 1]])
    assert shift_tokens_right(labels, pad_token_id=0, decoder_start_token_id=3).tolist() == [[3, 5, 6, 0], [3, 7, 0, 8]]
    assert labels[0, 2] == -100  # the caller's labels are unchanged


def test_the_loss_keeps_the_dtype() -> None:
    logits = np.random.default_rng(0).standard_normal((1, 3, 5)).astype(np.float32)
    assert cross_entropy(logits, np.array([[2, -100, 1]])).dtype == np.float32
