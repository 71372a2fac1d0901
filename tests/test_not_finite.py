"""Logits that are not finite end in an error that names the first token, the row, the first layer and the remedy."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from shutil import copy2
from typing import Any

import numpy as np
import pytest
from backend_parameters import EVERYTHING, backend_on_cpu
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from pegasusx_ref import (
    DEMO_CHECKPOINT,
    GenerationConfig,
    NumericsError,
    PegasusXConfig,
    PegasusXError,
    PegasusXForConditionalGeneration,
    get_backend,
    listen,
)
from pegasusx_ref.cli import main
from pegasusx_ref.generation import search
from pegasusx_ref.model.weights import random_weights

CONFIG = PegasusXConfig.preset("tiny", init_std=0.5)
WEIGHTS = random_weights(CONFIG, 0, True)
IDS = np.random.default_rng(0).integers(106, 256, (2, 21))
SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"do_sample": True},
    {"do_sample": True, "seed": 0, "num_return_sequences": 3, "top_p": 0.5},
    {"num_beams": 2, "cache_implementation": "static"},
    {"cache_implementation": "static"},
]


def damaged(name: str, value: float, backend: str = "numpy", dtype: str = "float32") -> Any:
    """Create a model one of whose weights has another value."""
    tensor = WEIGHTS[name].copy()
    tensor.flat[3] = value
    return PegasusXForConditionalGeneration(CONFIG, {**WEIGHTS, name: tensor}, backend_on_cpu(backend, dtype))


@pytest.mark.parametrize("how", SEARCHES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_the_error_names_token_layer_and_damaged_weight(backend: str, dtype: str, how: dict[str, Any]) -> None:
    cases = {
        "encoder.layers.0.fc1.weight": "encoder.layers.0.tokens.fc1",
        "decoder.layers.1.encoder_attn.v_proj.weight": "decoder.layers.1.encoder_attn.v_proj",
        "decoder.layer_norm.bias": "decoder.layer_norm",
    }
    for (weight, point), value in zip(cases.items(), (np.nan, np.inf, -np.inf), strict=True):
        with pytest.raises(NumericsError) as error:
            damaged(weight, value, backend, dtype).generate(IDS, max_new_tokens=4, **how)
        assert str(error.value).startswith(
            "the logits of token 1 are not finite in rows [0, 1] of the batch (of 2): "
            f"the first tensor that is not finite is {point}; weight {weight} is not finite, "
        )
        assert str(error.value).endswith("the checkpoint is damaged: download or copy it again")
        assert ("try dtype='float32'; if that fails too" in str(error.value)) == (dtype == "float16")


@pytest.mark.parametrize(
    ("dtype", "factor", "remedy"),
    [("float32", 1e30, "try dtype='float64'"), ("float64", 1e200, "check the size of the weights and of the input")],
)
def test_an_overflow_names_a_wider_dtype(dtype: str, factor: float, remedy: str) -> None:
    weights = {name: w * np.float64(factor if name == "shared.weight" else 1) for name, w in WEIGHTS.items()}
    model = PegasusXForConditionalGeneration(CONFIG, weights, backend_on_cpu("numpy", dtype))
    with pytest.raises(NumericsError) as error:  # and no warning of NumPy's, which would be an error here
        model.generate(IDS, max_new_tokens=4)
    place = "encoder.layers.0.tokens.self_attn_layer_norm"
    assert str(error.value).endswith(f"the first tensor that is not finite is {place}; {remedy}")


def test_half_precision_is_told_to_try_float32() -> None:
    pytest.importorskip("torch")
    weights = {name: w * 3e4 if "fc1.weight" in name else w for name, w in WEIGHTS.items()}
    model = PegasusXForConditionalGeneration(CONFIG, weights, backend_on_cpu("torch", "float16"))
    with pytest.raises(NumericsError, match=r"is encoder\.layers\.0\.tokens\.fc1; try dtype='float32'$"):
        model.generate(IDS, max_new_tokens=3)
    in_float32 = PegasusXForConditionalGeneration(CONFIG, weights, backend_on_cpu("torch", "float32"))
    assert in_float32.generate(IDS, max_new_tokens=3).shape == (2, 4)


@pytest.mark.parametrize("how", SEARCHES, ids=str)
def test_one_row_of_a_batch_is_named(how: dict[str, Any]) -> None:
    model = damaged("encoder.layers.0.fc1.weight", 0.1)
    embeds = np.random.default_rng(1).standard_normal((3, 21, CONFIG.d_model))
    embeds[1, 5] = np.inf
    calls: list[str] = []

    def replace(name: str, _: Any) -> Any:
        calls.append(name)
        return embeds.astype(np.float32)

    with listen(replace, "encoder.embeddings"), pytest.raises(NumericsError) as error:
        model.generate(inputs_embeds=np.zeros_like(embeds), max_new_tokens=4, **how)
    assert str(error.value).startswith("the logits of token 1 are not finite in rows [1] of the batch (of 3): ")
    assert "a second run found no layer whose tensors are not finite" in str(error.value)  # it has no such listener
    assert len(calls) == 1


def test_a_listener_of_the_caller_is_not_called_by_the_second_run_and_the_streamer_neither() -> None:
    class Streamer:
        def __init__(self) -> None:
            self.steps: list[Any] = []

        def put(self, value: Any) -> None:
            self.steps.append(value)

        def end(self) -> None:
            raise AssertionError("the text has no end")

    names: list[str] = []
    streamer = Streamer()
    with listen(lambda name, _: names.append(name), "encoder.embeddings"), pytest.raises(NumericsError):
        damaged("decoder.layer_norm.bias", np.nan).generate(IDS, max_new_tokens=3, streamer=streamer)
    assert names == ["encoder.embeddings"]
    assert len(streamer.steps) == 1  # the start tokens


@pytest.mark.parametrize("how", SEARCHES, ids=str)
def test_a_later_token_is_named(how: dict[str, Any]) -> None:
    """Sampling without a seed is repeated with the same random numbers."""
    model = damaged("encoder.layers.0.fc1.weight", 0.1)
    steps = []

    def third(name: str, logits: Any) -> Any:
        steps.append(name)
        return logits * np.float32(np.nan) if len(steps) == 3 else None

    with listen(third, "lm_head"), pytest.raises(NumericsError, match=r"^the logits of token 3 are .* \[0, 1\]"):
        model.generate(IDS, max_new_tokens=8, min_new_tokens=8, **how)


def next_logits_of(table: np.ndarray) -> Callable[..., np.ndarray]:
    """Return logits by step and source, whatever the ids: a table (steps, B, V)."""
    steps = iter(table)
    return lambda ids_BL, visible: np.repeat(next(steps)[:, None], ids_BL.shape[1], axis=1)


@settings(max_examples=50)
@given(
    seeds,
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from([{}, {"num_beams": 3}, {"do_sample": True}]),
    st.sampled_from(["float32", "float64"]),
)
def test_search_checks_the_logits_of_any_function(
    seed: int, value: float, step: int, row: int, how: dict[str, Any], dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((5, 3, 12)).astype(dtype)
    table[step, row, rng.integers(12)] = value
    config = GenerationConfig(max_new_tokens=5, eos_token_id=None, **how)
    with warnings.catch_warnings(action="error"), pytest.raises(NumericsError) as error:
        search(next_logits_of(table), 3, config, ops=get_backend("golden", dtype=dtype))
    message = f"the logits of token {step + 1} are not finite in rows [{row}] of the batch (of 3)"
    assert str(error.value) == message
    assert isinstance(error.value, PegasusXError)
    assert isinstance(error.value, ArithmeticError)


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"num_beams": 2, "early_stopping": True}], ids=str)
def test_logits_of_a_text_that_has_ended_do_not_matter(how: dict[str, Any]) -> None:
    def table(value: float) -> np.ndarray:
        logits = np.random.default_rng(0).standard_normal((9, 2, 12)).astype(np.float32)
        logits[:, :, 1] = -50
        logits[3, 0, [1, 4]] = 90, 89  # the first text ends
        logits[5:, 0] = value
        return logits

    config = GenerationConfig(max_new_tokens=9, length_penalty=6.0, **how)
    expected, found = (search(next_logits_of(table(value)), 2, config) for value in (0.0, np.nan))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert expected[0].shape[1] == 10


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"do_sample": True}], ids=str)
def test_large_finite_logits_are_no_error(how: dict[str, Any]) -> None:
    """Not even where their difference overflows."""
    table = np.zeros((4, 1, 12), dtype=np.float32)
    table[:, :, 3], table[:, :, 4] = 3e38, -3e38
    config = GenerationConfig(max_new_tokens=4, **how)
    assert search(next_logits_of(table), 1, config)[0].tolist() == [[0, 3, 3, 3, 3]]


def test_logits_beyond_float32_are_an_error_that_says_so() -> None:
    weights = {name: w * np.float64(1e200 if name == "decoder.layer_norm.weight" else 1) for name, w in WEIGHTS.items()}
    model = PegasusXForConditionalGeneration(CONFIG, weights, backend_on_cpu("golden", "float64"))
    with pytest.raises(NumericsError, match=re.escape("a second run found no layer whose tensors are not finite; ")):
        model.generate(IDS, max_new_tokens=3)


def test_loss_and_logits_of_a_call_stay_nan() -> None:
    out = damaged("decoder.layer_norm.bias", np.nan)(IDS, labels=IDS[:, :3])
    assert np.isnan(out.logits).all()
    assert np.isnan(out.loss)


@pytest.mark.slow
def test_the_command_line_shows_one_line_and_no_warning_of_numpy(tmp_path: Path) -> None:
    model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT)
    weights = {n: w * np.float32(1e30 if n == "shared.weight" else 1) for n, w in model.state_dict().items()}
    huge = PegasusXForConditionalGeneration(model.config, weights, model.ops, model.generation_config)
    huge.save_pretrained(tmp_path / "huge")
    copy2(DEMO_CHECKPOINT / "spiece.model", tmp_path / "huge")
    text = tmp_path / "in.txt"
    text.write_text("This library reads and writes PNG images.")
    commands: dict[tuple[str, ...], str] = {
        ("summarize",): "",
        ("trace",): "; to trace such a model, give a text with --target",
    }
    for command, hint in commands.items():
        result = CliRunner().invoke(main, [*command, "--model", str(tmp_path / "huge"), str(text)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: the logits of token 1 are not finite in rows [0] of the batch (of 1): ")
        assert result.stderr.endswith(f"; try dtype='float64'{hint}\n")
        assert result.stderr.count("\n") == 1
    shown = CliRunner().invoke(main, ["trace", "--model", str(tmp_path / "huge"), "--target", "png", str(text)])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "nan" in shown.stdout
