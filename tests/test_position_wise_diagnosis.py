"""Position-wise bugs are named exactly, fitted numbers are, and errors of other kinds are not named falsely."""

from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model

from pegasusx_ref import PegasusXConfig
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.verification import from_backend, verify
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, LayerContext
from pegasusx_ref.verification.diagnosis.fitted_weights import fitted_linear_bugs, is_independent
from pegasusx_ref.verification.diagnosis.linear_bugs import linear_bugs
from pegasusx_ref.verification.diagnosis.rounded_operands import COMMON, to_tf32, weight_roundings

pytestmark = pytest.mark.unwatched

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (2, 29)),
    "attention_mask": np.arange(29) < np.array([[29], [17]]),
    "decoder_input_ids": _rng.integers(106, 256, (2, 21)),
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return dict(from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS))


def mistakes(tensors: dict[str, np.ndarray], name: str, wrong: np.ndarray) -> list[str]:
    """Return the diagnoses of a wrong tensor."""
    report = verify(random_model(CONFIG, 0), tensors | {name: wrong.astype(np.float32)}, INPUTS, "float32")
    (finding,) = (finding for finding in report.findings if finding.first.name == name)
    return [diagnosis.mistake for diagnosis in finding.diagnoses]


def failed_linear(x: np.ndarray, weight: np.ndarray, candidate: np.ndarray, **others: np.ndarray) -> FailedOperation:
    name = "decoder.layers.0.fc1"
    settings = {"weight": weight, "bias": None, "matrix": None}
    layer = LayerContext(CONFIG, others, np.ones((2, 3), dtype=bool), {name: candidate})
    return FailedOperation(name, (x,), settings, layer)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape)


# --- what is named


@pytest.mark.parametrize("factor", [-1.0, 0.5, 1.001, 7.25])
def test_a_factor_is_named_with_its_digits(tensors: dict[str, np.ndarray], factor: float) -> None:
    name = "encoder.layers.1.tokens.fc2"
    assert mistakes(tensors, name, factor * tensors[name]) == [f"the result is multiplied by {factor:g}"]


def test_a_variance_in_one_pass_is_named(tensors: dict[str, np.ndarray]) -> None:
    """With a mean of 300 deviations, E[x^2] - E[x]^2 loses most digits of float32."""
    residual, name = "decoder.layers.0.encoder_attn_residual", "decoder.layers.0.final_layer_norm"
    x = np.float32(300) + tensors[residual]
    weight, bias = (random_model(CONFIG, 0).weights[f"{name}.{part}"] for part in ("weight", "bias"))
    variance = (x * x).mean(axis=-1, keepdims=True) - x.mean(axis=-1, keepdims=True) ** 2
    wrong = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5) * weight + bias
    (found,) = mistakes(tensors | {residual: x}, name, wrong)
    assert found == "the variance is E[x^2] - E[x]^2, whose digits cancel in float32"


def test_a_residual_sum_that_is_not_shown_can_be_an_input(tensors: dict[str, np.ndarray]) -> None:
    place = "encoder.layers.0"
    shown = {name: x for name, x in tensors.items() if not name.endswith("_residual")}
    weight, bias = (random_model(CONFIG, 0).weights[f"{place}.fc1.{part}"] for part in ("weight", "bias"))
    wrong = linear(tensors[f"{place}.tokens.self_attn_residual"], weight, bias)
    assert mistakes(shown, f"{place}.tokens.fc1", wrong) == [f"its input is {place}.tokens.self_attn_residual"]


@pytest.mark.parametrize("name", weight_roundings(64))
def test_each_rounding_of_a_weight_is_told_from_the_others(name: str) -> None:
    x, weight = draw(2, 9, 64), draw(96, 64).astype(np.float32).astype(np.float64)
    rounded = weight_roundings(64)[name](weight)
    if np.array_equal(rounded, weight):
        return  # float32
    found = linear_bugs(failed_linear(x, weight, linear(x, rounded)))
    exact = [bug for bug, variant in found.items() if np.abs(variant() - linear(x, rounded)).max() < 1e-12]
    digits = {"float16": ["float16", "tf32"], "tf32": ["float16", "tf32"]}.get(name, [name])
    assert set(exact) <= {f"the weight is rounded to {other}" for other in digits}
    assert f"the weight is rounded to {name}" in exact


def test_tf32_has_ten_bits_after_the_leading_one() -> None:
    x = np.array([1 + 2.0**-10, 1 + 2.0**-11 + 2.0**-20, 1 + 2.0**-12, -1 - 2.0**-11 - 2.0**-20])
    np.testing.assert_array_equal(to_tf32(x), [1 + 2.0**-10, 1 + 2.0**-10, 1, -1 - 2.0**-10])
    np.testing.assert_array_equal(COMMON["tf32, by truncation"](x), [1 + 2.0**-10, 1, 1, -1])


# --- how few are computed


def test_only_bugs_that_explain_some_row_are_computed_whole() -> None:
    x, weight = draw(2, 9, 64), draw(96, 64)
    others = {f"decoder.layers.{i}.fc1.weight": _rng.standard_normal((96, 64)) for i in range(1, 9)}
    found = linear_bugs(failed_linear(x, weight, linear(x, others["decoder.layers.5.fc1.weight"]), **others))
    assert [bug for bug in found if "weights of" in bug] == ["the weights of decoder.layers.5.fc1 are used"]
    assert len(found) < 5


# --- what is not named


def test_noise_is_not_named(tensors: dict[str, np.ndarray]) -> None:
    for name in ("encoder.layers.1.tokens.fc1", "decoder.layers.0.output", "decoder.layers.1.final_layer_norm"):
        noise = 0.03 * np.random.default_rng(2).standard_normal(tensors[name].shape)
        assert mistakes(tensors, name, tensors[name] + noise) == []


def test_errors_that_are_only_alike_in_all_rows_are_no_bias() -> None:
    """The mean error of a column takes up most of a factor's effect on rows that are nearly the same."""
    x, weight = draw(1, 32) + 0.05 * draw(40, 32), draw(16, 32)
    settings = {"weight": weight, "bias": None}
    right = linear(x, weight)
    rounding = 1e-7 * np.random.default_rng(3).standard_normal(right.shape)
    assert fitted_linear_bugs("out_proj", x, settings, right + 0.01 * draw(16) + rounding)
    assert "a bias is added" not in fitted_linear_bugs("out_proj", x, settings, right * 1.00001 + rounding)


def test_errors_are_independent_whatever_their_sizes() -> None:
    errors = draw(60, 40) * np.abs(draw(60, 1)) * np.abs(draw(40))
    assert is_independent(errors)
    assert is_independent(np.zeros((3, 4)))
    assert not is_independent(errors + np.outer(draw(60), draw(40)))


def test_a_matrix_is_fitted_to_rows_of_a_matrix_only(tensors: dict[str, np.ndarray]) -> None:
    """A function that is not linear leaves more than rounding."""
    name = "decoder.layers.1.fc1"
    assert mistakes(tensors, name, np.tanh(tensors[name])) == []
