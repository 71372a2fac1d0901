"""The errors that hidden tensors leave in later ones, compared with those of simulated runs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backend_parameters import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, configs, seeds

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, listen
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.verification.checking.arithmetics import ARITHMETICS
from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.checking.operations import LOWEST, CheckingOperations

pytestmark = pytest.mark.unwatched

RUNS = 12


def run(model: PegasusXForConditionalGeneration, name: str, inputs: Any, listener: Callable[..., Estimate]) -> None:
    """Run the checking operations, each from what the listener returns."""
    ops = CheckingOperations(ARITHMETICS[name])
    with np.errstate(over="ignore"), listen(listener):
        PegasusXForConditionalGeneration(model.config, model.state_dict(), ops)(**inputs)


def ratios(model: PegasusXForConditionalGeneration, name: str, inputs: Any) -> dict[str, float]:
    """Divide the expected error of each tensor, with all tensors hidden, by that of simulated runs; means over rows."""
    expected: dict[str, Estimate] = {}
    found: dict[str, np.ndarray] = {}

    def hidden(point: str, estimate: Estimate) -> Estimate:
        expected[point] = estimate.detach()
        return expected[point]

    run(model, name, inputs, hidden)
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)

        def rounded(point: str, estimate: Estimate) -> Estimate:
            noisy = estimate.value + np.sqrt(estimate.variance) * rng.standard_normal(estimate.shape)  # noqa: B023
            noisy = np.where(estimate.value == LOWEST, LOWEST, noisy)
            error = np.where(estimate.value == LOWEST, 0.0, noisy - expected[point].value)
            found[point] = found.get(point, 0.0) + error**2 / RUNS
            return Estimate(noisy, noisy)

        run(model, name, inputs, rounded)
    return {
        point: float(np.sqrt(estimate.variance.mean() / found[point].mean()))
        for point, estimate in expected.items()
        if found[point].any()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@settings(max_examples=10)
@given(st.data())
def test_errors_have_the_expected_size(name: str, data: st.DataObject) -> None:
    """Neither too small, which would be a false alarm, nor so large that faults pass."""
    config = data.draw(configs(init_std=0.2, layer_norm_eps=1e-5))
    model = reference(config, data.draw(seeds), name)
    inputs = data.draw(batches(config))._asdict()
    sizes = ratios(model, name, inputs)
    assert min(sizes.values()) > 0.35, min(sizes.items(), key=lambda item: item[1])
    assert np.median(list(sizes.values())) < 4


@pytest.mark.slow
def test_errors_of_a_trained_model_have_the_expected_size() -> None:
    model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, backend="golden", dtype="float64")
    rng = np.random.default_rng(0)
    inputs = {"input_ids": rng.integers(106, 2000, (1, 200)), "decoder_input_ids": rng.integers(106, 2000, (1, 9))}
    sizes = ratios(model, "float32", inputs)
    assert min(sizes.values()) > 0.35, min(sizes.items(), key=lambda item: item[1])
    assert sizes["lm_head"] < 5


def test_hidden_queries_change_all_scores_of_a_context_together() -> None:
    """With many keys, independent errors of scores would average out: this one is a hundred times larger."""
    config = PegasusXConfig.preset("tiny", init_std=0.2, encoder_layers=1, decoder_layers=0, num_global_tokens=2)
    rng = np.random.default_rng(0)
    inputs = {"input_ids": rng.integers(106, 256, (1, 900)), "decoder_input_ids": np.zeros((1, 1), dtype=int)}
    sizes = ratios(reference(config, 0, "float32"), "tf32", inputs)
    assert 0.5 < sizes["encoder.layers.0.self_attn.global.context"] < 8
