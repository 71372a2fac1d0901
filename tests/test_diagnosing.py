"""Every known mistake is told from right results, and from every other mistake of the same operation."""

from typing import Any

import numpy as np
import pytest
from machines import random_model

from pegasusx_ref import PegasusXConfig
from pegasusx_ref.embedding import sinusoidal_positions
from pegasusx_ref.normalization import layer_norm
from pegasusx_ref.verification import from_backend, verify
from pegasusx_ref.verification.arithmetic import ARITHMETICS
from pegasusx_ref.verification.diagnosing import LOW_PRECISION, diagnose
from pegasusx_ref.verification.hypotheses import HYPOTHESES, Case

SHAPE: dict[str, Any] = {"init_std": 0.2, "encoder_layers": 2, "decoder_layers": 1, "activation_function": "gelu"}
CONFIGS = {
    "published": PegasusXConfig.preset("tiny", **SHAPE),
    "without scale": PegasusXConfig.preset(
        "tiny", **(SHAPE | {"scale_embedding": False, "activation_function": "relu"})
    ),
}
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": np.r_[0, 0, _rng.integers(106, 256, 27)][None],  # padding's id among them
    "attention_mask": (np.arange(29) < 23)[None],
    "decoder_input_ids": _rng.integers(106, 256, (1, 7)),
}
# One tensor of every kind.
PLACES = (
    "encoder.embed_tokens",
    "encoder.embeddings",
    "encoder.layers.0.tokens.self_attn_layer_norm",
    "encoder.layers.0.globals.self_attn_layer_norm",
    "encoder.layers.0.self_attn.tokens.q_proj",
    "encoder.layers.1.self_attn.local.1.scores",
    "encoder.layers.1.self_attn.local.1.probs",
    "encoder.layers.1.self_attn.local.1.context",
    "encoder.layers.1.self_attn.global.scores",
    "encoder.layers.1.tokens.fc1",
    "encoder.layers.1.tokens.activation",
    "encoder.layers.1.tokens.output",
    "decoder.layers.0.self_attn.scores",
    "decoder.layers.0.encoder_attn.scores",
    "decoder.layers.0.self_attn.out_proj",
)


def broken(tensors: dict[str, np.ndarray], name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    return tensors | {name: value.astype(np.float32)}


def case_at(config: PegasusXConfig, name: str) -> tuple[Any, dict[str, np.ndarray], Case]:
    """The model, a right candidate's tensors in float32, and the operation behind one of them."""
    model = random_model(config, 0)
    tensors = dict(from_backend(random_model(config, 0, "numpy", "float32"))(INPUTS))
    failure = verify(model, broken(tensors, name, tensors[name] + 1), INPUTS, "float32").failure
    assert failure is not None
    assert failure.estimate.made is not None
    assert failure.check.name == name
    values = tuple(x.value for x in failure.estimate.made.inputs)
    return model, tensors, Case(name, values, failure.estimate.made.settings, model.weights)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("shape", CONFIGS)
def test_each_mistake_is_known_from_all_others(shape: str, name: str) -> None:
    model, tensors, case = case_at(CONFIGS[shape], name)
    right = verify(model, tensors, INPUTS, "float32")
    assert (right.passed, right.diagnoses) == (True, [])
    operation = next(check.operation for check in right.table if check.name == name)
    for mistake, variant in HYPOTHESES[operation](case).items():
        with np.errstate(over="ignore"):
            wrong = np.maximum(variant(), np.finfo(np.float32).min)
        report = verify(model, broken(tensors, name, wrong), INPUTS, "float32")
        if report.passed:
            assert "is missing" in mistake or "eps" in mistake  # a change that float32 does not show here
            continue
        assert report.failure is not None
        assert report.failure.check.name == name
        found = [diagnosis.mistake for diagnosis in report.diagnoses]
        alike = {mistake} | ({m for m in found if "eps is" in m} if "eps is" in mistake else set())
        assert mistake in found
        assert set(found) <= alike, f"{mistake} looks like {found}"


def test_there_are_many_kinds() -> None:
    kinds = set()
    for config in CONFIGS.values():
        for name in PLACES:
            case = case_at(config, name)[2]
            (operation,) = {o for o in HYPOTHESES if fits(o, name)}
            kinds |= {f"{operation}: {mistake}" for mistake in HYPOTHESES[operation](case)}
    assert len(kinds) >= 45


def fits(operation: str, name: str) -> bool:
    """Say which operation a tensor of PLACES comes from, by its last part."""
    last = name.rpartition(".")[2]
    by_name = {
        "embed_tokens": "embed_tokens", "embeddings": "add_positions", "self_attn_layer_norm": "layer_norm",
        "q_proj": "linear", "out_proj": "linear", "fc1": "linear", "scores": "scores", "probs": "softmax",
        "context": "weighted_sum", "activation": "activation", "output": "add",
    }  # fmt: skip
    return by_name[last] == operation


def test_neighbouring_eps_are_told_apart() -> None:
    """1e-6 and 1e-12 differ from 1e-5 by nearly the same; the coefficient tells."""
    name = "encoder.layers.1.tokens.final_layer_norm"
    model, tensors, case = case_at(PegasusXConfig.preset("tiny", init_std=0.02), name)
    variants = HYPOTHESES["layer_norm"](case)
    for eps in ("1e-06", "1e-12"):
        mistake = f"LayerNorm's eps is {eps}, not 1e-05"
        report = verify(model, broken(tensors, name, variants[mistake]()), INPUTS, "float32")
        assert report.diagnoses[0].mistake == mistake
        assert abs(report.diagnoses[0].coefficient - 1) < 0.02
        other = {"1e-06": "1e-12", "1e-12": "1e-06"}[eps]
        assert f"LayerNorm's eps is {other}, not 1e-05" not in [d.mistake for d in report.diagnoses]


def test_what_nobody_thought_of_has_no_diagnosis() -> None:
    name = "encoder.layers.1.tokens.fc1"
    model, tensors, _ = case_at(CONFIGS["published"], name)
    noise = 0.1 * np.random.default_rng(1).standard_normal(tensors[name].shape)
    report = verify(model, broken(tensors, name, tensors[name] + noise), INPUTS, "float32")
    assert not report.passed
    assert report.diagnoses == []


def test_positions_in_low_precision_are_named() -> None:
    name = "encoder.embeddings"
    model, tensors, case = case_at(CONFIGS["published"], name)
    (x,) = case.inputs
    half = x.shape[2] // 2
    steps = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angles = np.arange(x.shape[1], dtype=np.float32)[:, None] * steps
    wrong = x.astype(np.float32) + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    report = verify(model, broken(tensors, name, wrong), INPUTS, "float32")
    assert [diagnosis.mistake for diagnosis in report.diagnoses] == [LOW_PRECISION]
    assert report.failure is not None
    assert diagnose(report.failure, ARITHMETICS["float64"], model.weights) == []


def test_a_mistake_beside_another_is_not_the_explanation() -> None:
    """The coefficient is 1, but rounding is not all that is left."""
    name = "encoder.layers.1.tokens.fc1"
    model, tensors, case = case_at(CONFIGS["published"], name)
    wrong = HYPOTHESES["linear"](case)["the bias is missing"]()
    assert verify(model, broken(tensors, name, wrong), INPUTS, "float32").diagnoses
    wrong[0, 3:5, 7] += np.array([1e-4, -1e-4])  # the same in two directions: the coefficient stays
    assert verify(model, broken(tensors, name, wrong), INPUTS, "float32").diagnoses == []


def test_a_part_of_a_mistake_is_not_the_mistake() -> None:
    """What is left is no more than rounding, but the coefficient is not 1."""
    name = "encoder.layers.0.tokens.self_attn_layer_norm"
    model, tensors, case = case_at(PegasusXConfig.preset("tiny", init_std=0.02), name)
    (x,), (weight, bias) = case.inputs, (case.settings[n] for n in ("weight", "bias"))
    between = layer_norm(x, weight, bias, 1.15e-6)
    report = verify(model, broken(tensors, name, between), INPUTS, "float32")
    assert not report.passed
    assert report.diagnoses == []


def test_positions_that_are_off_by_more_than_low_precision_are_not_named_so() -> None:
    name = "encoder.embeddings"
    model, tensors, case = case_at(CONFIGS["published"], name)
    (x,) = case.inputs
    _, T, D = x.shape
    near = 0.99 * sinusoidal_positions(0, T, D) + 0.01 * sinusoidal_positions(1, T, D)
    report = verify(model, broken(tensors, name, x + near), INPUTS, "float32")
    assert not report.passed
    assert report.diagnoses == []
