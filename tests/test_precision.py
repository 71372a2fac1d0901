"""The accuracy of half precision: long inputs in bfloat16, large residual streams in float16."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from backend_parameters import rounded
from hf_reference import hf_reference, run
from tolerances import HALF_PRECISION, relative_error

from pegasusx_ref import InputError, PegasusXConfig, PegasusXForConditionalGeneration, get_backend, record
from pegasusx_ref.model.weights import random_weights

pytestmark = pytest.mark.slow

pytest.importorskip("torch", reason="half precision needs the torch backend: torch is not installed")


def model_on(
    backend: str, dtype: str, config: PegasusXConfig, weights: dict[str, np.ndarray]
) -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration(config, weights, get_backend(backend, "cpu", dtype))


def test_bfloat16_distinguishes_2048_positions_and_transformers_does_not(transformers: ModuleType) -> None:
    import torch

    config = PegasusXConfig.preset("base", decoder_layers=0, vocab_size=1000)
    ids = np.random.default_rng(0).integers(106, 1000, (1, 2048))
    weights = {name: rounded(w, "bfloat16") for name, w in random_weights(config, 0, head=True).items()}
    exact = model_on("torch", "float64", config, weights)
    expected = exact.encode(ids).last_hidden_state
    ours = model_on("torch", "bfloat16", config, weights).encode(ids).last_hidden_state
    hf_encoder = hf_reference(transformers, exact).to(torch.bfloat16).model.encoder
    theirs = run(hf_encoder, input_ids=ids).last_hidden_state.float().numpy()
    assert relative_error(ours, expected) <= HALF_PRECISION
    assert relative_error(theirs, expected) > 20 * HALF_PRECISION  # its positions are bfloat16: measured 0.32


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_residual_stream_may_exceed_the_range_of_float16(activation: str) -> None:
    config = PegasusXConfig.preset("tiny", encoder_layers=4, activation_function=activation, init_std=0.2)
    weights = random_weights(config, 0, head=True)
    for name in weights:
        if name.endswith("fc1.weight"):
            weights[name] *= 4
        if name.endswith("fc2.weight"):
            weights[name] *= 5e4
    weights = {name: rounded(w, "float16") for name, w in weights.items()}
    rng = np.random.default_rng(0)
    batch = (rng.integers(106, 256, (2, 50)), np.arange(50) < [[50], [31]], rng.integers(106, 256, (2, 7)))
    with record("encoder.layers.*.tokens.output", "decoder.layers.*.output") as trace:
        expected = model_on("golden", "float64", config, weights)(*batch)
    assert max(np.abs(x).max() for x in trace.values()) > 1e6
    actual = model_on("torch", "float16", config, weights)(*batch)
    assert np.isfinite(actual.logits).all()
    assert relative_error(actual.logits, expected.logits) <= HALF_PRECISION
    found, wanted = (np.asarray(output.encoder_last_hidden_state)[batch[1]] for output in (actual, expected))
    assert relative_error(found, wanted) <= HALF_PRECISION


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_results_of_fully_padded_texts_are_finite(dtype: str) -> None:
    config = PegasusXConfig.preset("tiny")
    model = PegasusXForConditionalGeneration.from_random(config, backend="torch", dtype=dtype)
    mask = np.array([[1] * 20, [0] * 20])
    output = model(np.full((2, 20), 120), mask, [[0, 120, 130]] * 2, output_attentions=True)
    assert np.isfinite(output.logits).all()
    for attentions in (*(output.cross_attentions or ()), *(output.decoder_attentions or ())):
        assert np.isfinite(attentions).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_model_is_saved_and_loaded_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"), backend="torch", dtype=dtype)
    model.save_pretrained(tmp_path)
    again = PegasusXForConditionalGeneration.from_pretrained(tmp_path, backend="torch", dtype="auto")
    assert again.dtype == dtype
    assert (tmp_path / "model.safetensors").stat().st_size < 2.1 * model.num_parameters() + 10_000
    ids = np.random.default_rng(0).integers(106, 256, (1, 30))
    assert (model(ids, decoder_input_ids=[[0, 7]]).logits == again(ids, decoder_input_ids=[[0, 7]]).logits).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_cache_is_accepted_in_every_dtype(dtype: str) -> None:
    """In half precision residual stream and cached keys differ in dtype; a cache of another dtype is refused."""
    config = PegasusXConfig.preset("tiny")
    weights = {name: rounded(w, "bfloat16") for name, w in random_weights(config, 0, head=True).items()}
    model, other = (model_on("torch", each, config, weights) for each in (dtype, "float64"))
    ids = [[110, 120, 130, 1]]
    whole = model(ids, decoder_input_ids=[[0, 140, 150]])
    past = model(ids, decoder_input_ids=[[0, 140]]).past_key_values
    step = model(ids, decoder_input_ids=[[150]], past_key_values=past)
    assert relative_error(step.logits, whole.logits[:, 2:]) <= HALF_PRECISION
    with pytest.raises(InputError, match="belongs to another source or model"):
        other(ids, decoder_input_ids=[[150]], past_key_values=past)
