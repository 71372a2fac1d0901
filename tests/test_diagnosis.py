"""Diagnosis distinguishes every known bug from right results and from the other bugs of the same operation."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model, rounded

from pegasusx_ref import DEMO_CHECKPOINT, PegasusXConfig, PegasusXForConditionalGeneration, listen
from pegasusx_ref.golden.attention import split_heads
from pegasusx_ref.golden.embedding import sinusoidal_positions
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.golden.global_local import Blocks, block_bounds
from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.verification import from_backend, verify
from pegasusx_ref.verification.checking.arithmetics import ARITHMETICS
from pegasusx_ref.verification.checking.operations import HIDDEN
from pegasusx_ref.verification.diagnosis.diagnose import diagnose
from pegasusx_ref.verification.diagnosis.error_sizes import LOW_PRECISION_POSITIONS
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, LayerContext
from pegasusx_ref.verification.diagnosis.known_bugs import KNOWN_BUGS
from pegasusx_ref.verification.diagnosis.mask_bugs import NO_PADDING_MASK
from pegasusx_ref.verification.verdicts import Failure

pytestmark = [pytest.mark.slow, pytest.mark.unwatched]

SHAPE: dict[str, Any] = {"init_std": 0.2, "encoder_layers": 2, "decoder_layers": 1, "activation_function": "gelu"}
CONFIGS = {
    "published": PegasusXConfig.preset("tiny", **SHAPE),
    "without scale": PegasusXConfig.preset(
        "tiny", **(SHAPE | {"scale_embedding": False, "activation_function": "relu"})
    ),
}
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": np.r_[0, 0, _rng.integers(106, 256, 27)][None],  # with padding ids
    "attention_mask": (np.arange(29) < 23)[None],
    "decoder_input_ids": _rng.integers(106, 256, (1, 7)),
}
# One tensor of every kind.
PLACES = (
    "encoder.embed_tokens",
    "encoder.embeddings",
    "encoder.embed_global",
    "encoder.layers.0.tokens.self_attn_layer_norm",
    "encoder.layers.0.globals.self_attn_layer_norm",
    "encoder.layers.0.self_attn.tokens.q_proj",
    "encoder.layers.1.self_attn.local.1.scores",
    "encoder.layers.1.self_attn.local.1.probs",
    "encoder.layers.1.self_attn.local.1.context",
    "encoder.layers.1.self_attn.global.scores",
    "encoder.layers.1.self_attn.tokens.out_proj",
    "encoder.layers.1.globals.final_layer_norm",
    "encoder.layers.1.tokens.fc1",
    "encoder.layers.1.tokens.activation",
    "encoder.layers.1.tokens.output",
    "decoder.embed_tokens",
    "decoder.layers.0.self_attn.scores",
    "decoder.layers.0.encoder_attn.k_proj",
    "decoder.layers.0.encoder_attn.scores",
    "decoder.layers.0.self_attn.out_proj",
)


def broken(tensors: dict[str, np.ndarray], name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    return tensors | {name: value.astype(np.float32)}


def is_the_same(wrong: np.ndarray, right: np.ndarray) -> bool:
    """Return whether two tensors are equal in float32."""
    wrong, right = (np.maximum(x, np.finfo(np.float32).min) for x in (wrong, right))
    size = np.abs(right[right > HIDDEN]).max(initial=0)
    return wrong.shape == right.shape and np.allclose(wrong, right, rtol=1e-5, atol=1e-5 * size, equal_nan=True)


def alike(bug: str, wrong: np.ndarray, op: FailedOperation, operation: str) -> set[str]:
    """Return the bugs that have the effect of one: their results are equal, or they differ in eps."""
    variants = {other: variant() for other, variant in KNOWN_BUGS[operation](op).items()}
    return {m for m, x in variants.items() if m == bug or ("eps is" in m and "eps is" in bug) or is_the_same(wrong, x)}


def operation_at(config: PegasusXConfig, name: str) -> tuple[Any, dict[str, np.ndarray], FailedOperation]:
    """Return the model, a right candidate's tensors in float32, and the operation that computes one of them."""
    model = random_model(config, 0)
    tensors = dict(from_backend(random_model(config, 0, "numpy", "float32"))(INPUTS))
    failure = verify(model, broken(tensors, name, tensors[name] + 1), INPUTS, "float32").failure
    assert failure is not None
    assert failure.estimate.origin is not None
    assert failure.check.name == name
    values = tuple(x.value for x in failure.estimate.origin.inputs)
    hidden = {other: x for other, x in tensors.items() if other != name}  # with the result, bugs are sorted out early
    context = layer_context(model, failure)._replace(tensors=hidden)
    return (
        model,
        tensors,
        FailedOperation(name, values, failure.estimate.origin.settings, context),
    )


def layer_context(model: PegasusXForConditionalGeneration, failure: Failure) -> LayerContext:
    return LayerContext(model.config, model.weights, INPUTS["attention_mask"], failure.tensors)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("shape", CONFIGS)
def test_each_bug_is_told_from_all_others(shape: str, name: str) -> None:
    model, tensors, op = operation_at(CONFIGS[shape], name)
    right = verify(model, tensors, INPUTS, "float32")
    assert (right.passed, right.diagnoses) == (True, [])
    operation = next(check.operation for check in right.table if check.name == name)
    for bug, variant in KNOWN_BUGS[operation](op).items():
        with np.errstate(over="ignore"):
            wrong = np.maximum(variant(), np.finfo(np.float32).min)
        report = verify(model, broken(tensors, name, wrong), INPUTS, "float32")
        if is_the_same(wrong, tensors[name]) and (report.passed or "eps is" not in bug):
            continue
        assert report.failure is not None
        assert report.failure.check.name == name
        found = [diagnosis.mistake for diagnosis in report.diagnoses]
        assert bug in found
        seen = op._replace(layer=layer_context(model, report.failure))
        # A bug of an earlier step may be listed after those of this one: it has the same effect on this step.
        own = set(found) & set(KNOWN_BUGS[operation](op))
        assert own <= alike(bug, wrong, seen, operation), f"{bug} is diagnosed as {found}"


def test_there_are_many_kinds() -> None:
    kinds = set()
    for config in CONFIGS.values():
        for name in PLACES:
            op = operation_at(config, name)[2]
            (operation,) = {o for o in KNOWN_BUGS if computes(o, name)}
            kinds |= {f"{operation}: {bug}" for bug in KNOWN_BUGS[operation](op)}
    assert len(kinds) >= 80


def computes(operation: str, name: str) -> bool:
    """Return whether an operation computes a tensor of PLACES, by the last part of its name."""
    last = name.rpartition(".")[2]
    by_name = {
        "embed_tokens": "embed_tokens", "embed_global": "embed_tokens", "embeddings": "add_positions",
        "self_attn_layer_norm": "layer_norm",
        "final_layer_norm": "layer_norm",
        "q_proj": "linear", "k_proj": "linear", "out_proj": "linear", "fc1": "linear",
        "scores": "scores", "probs": "softmax", "context": "weighted_sum",
        "activation": "activation", "output": "add",
    }  # fmt: skip
    return by_name[last] == operation


def test_neighbouring_eps_are_told_apart() -> None:
    """1e-6 and 1e-12 have nearly the same effect; the coefficient differs."""
    name = "encoder.layers.1.tokens.final_layer_norm"
    model, tensors, op = operation_at(PegasusXConfig.preset("tiny", init_std=0.02), name)
    variants = KNOWN_BUGS["layer_norm"](op)
    for eps in ("1e-06", "1e-12"):
        bug = f"LayerNorm's eps is {eps}, not 1e-05"
        report = verify(model, broken(tensors, name, variants[bug]()), INPUTS, "float32")
        assert report.diagnoses[0].mistake == bug
        assert abs(report.diagnoses[0].coefficient - 1) < 0.02
        other = {"1e-06": "1e-12", "1e-12": "1e-06"}[eps]
        assert f"LayerNorm's eps is {other}, not 1e-05" not in [d.mistake for d in report.diagnoses]


def test_an_unknown_bug_has_no_diagnosis() -> None:
    name = "encoder.layers.1.tokens.fc1"
    model, tensors, _ = operation_at(CONFIGS["published"], name)
    noise = 0.1 * np.random.default_rng(1).standard_normal(tensors[name].shape)
    report = verify(model, broken(tensors, name, tensors[name] + noise), INPUTS, "float32")
    assert not report.passed
    assert report.diagnoses == []


def test_positions_in_low_precision_are_diagnosed() -> None:
    name = "encoder.embeddings"
    model, tensors, op = operation_at(CONFIGS["published"], name)
    (x,) = op.inputs
    half = x.shape[2] // 2
    steps = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angles = np.arange(x.shape[1], dtype=np.float32)[:, None] * steps
    wrong = x.astype(np.float32) + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    report = verify(model, broken(tensors, name, wrong), INPUTS, "float32")
    assert [diagnosis.mistake for diagnosis in report.diagnoses] == [LOW_PRECISION_POSITIONS]
    assert report.failure is not None
    in_float64 = diagnose(report.failure, ARITHMETICS["float64"], layer_context(model, report.failure))
    assert [d.mistake for d in in_float64] == ["its numbers have float32 precision only: computed or stored in float32"]


def test_a_bug_with_another_error_is_no_diagnosis() -> None:
    """The coefficient is 1, but the remaining error exceeds rounding."""
    name = "encoder.layers.1.tokens.fc1"
    model, tensors, op = operation_at(CONFIGS["published"], name)
    wrong = KNOWN_BUGS["linear"](op)["the bias is missing"]()
    assert verify(model, broken(tensors, name, wrong), INPUTS, "float32").diagnoses
    wrong[0, 3:5, 7] += np.array([1e-4, -1e-4])  # the same in two directions: the coefficient stays
    assert verify(model, broken(tensors, name, wrong), INPUTS, "float32").diagnoses == []


def test_part_of_a_bug_is_no_diagnosis() -> None:
    """The remaining error is within rounding, but the coefficient is not 1."""
    name = "encoder.layers.0.tokens.self_attn_layer_norm"
    model, tensors, op = operation_at(PegasusXConfig.preset("tiny", init_std=0.02), name)
    (x,), (weight, bias) = op.inputs, (op.settings[n] for n in ("weight", "bias"))
    between = layer_norm(x, weight, bias, 1.15e-6)
    report = verify(model, broken(tensors, name, between), INPUTS, "float32")
    assert [diagnosis.mistake for diagnosis in report.diagnoses] == ["LayerNorm's eps is 1.15e-06, not 1e-05"]  # a fit


def test_positions_beyond_low_precision_have_no_diagnosis() -> None:
    name = "encoder.embeddings"
    model, tensors, op = operation_at(CONFIGS["published"], name)
    (x,) = op.inputs
    _, T, D = x.shape
    near = 0.99 * sinusoidal_positions(0, T, D) + 0.01 * sinusoidal_positions(1, T, D)
    report = verify(model, broken(tensors, name, x + near), INPUTS, "float32")
    assert not report.passed
    assert report.diagnoses == []


# --- bugs in several tensors, and in tensors that are not shown ------------------------------------------------------

SHOWN: dict[str, tuple[str, ...]] = {
    "everything": (),
    "no scores": ("scores", "probs"),
    "no context": ("scores", "probs", "context"),
}


def without(tensors: Mapping[str, np.ndarray], hidden: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(hidden)} if hidden else dict(tensors)


def diagnosed(
    monkeypatch: pytest.MonkeyPatch, target: str, wrong: Any, hidden: tuple[str, ...] = ()
) -> tuple[str, list[str]]:
    """Run a model with one wrong function, and return the first wrong tensor and the diagnoses."""
    right = random_model(CONFIGS["published"], 0)
    candidate = from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))
    with monkeypatch.context() as patch:
        patch.setattr(target, wrong)
        tensors = candidate(INPUTS)
    report = verify(right, without(tensors, hidden), INPUTS, "float32")
    assert report.first_failure is not None
    assert all(abs(d.coefficient - 1) < 1e-3 for d in report.diagnoses)
    return report.first_failure.name, [diagnosis.mistake for diagnosis in report.diagnoses]


def split_at(*edges: int) -> Callable[[int, int, bool], Blocks]:
    """Split even layers correctly, and staggered ones at these edges."""

    def split(T: int, K: int, staggered: bool) -> Blocks:
        return list(pairwise((0, *edges, T))) if staggered else block_bounds(T, K, False)

    return split


BLOCK_BUGS: dict[str, Callable[[int, int, bool], Blocks]] = {
    "blocks are not staggered": lambda T, K, _: block_bounds(T, K, False),
    "blocks are staggered": lambda T, K, _: block_bounds(T, K, True),
    "blocks have 9 tokens, not 8": lambda T, K, staggered: block_bounds(T, K + 1, staggered),
    "blocks have 7 tokens, not 8": lambda T, K, staggered: block_bounds(T, K - 1, staggered),
    "blocks have 4 tokens, not 8": lambda T, K, staggered: block_bounds(T, K // 2, staggered),
    "blocks have 6 tokens, not 8": lambda T, K, staggered: block_bounds(T, K - 2 if staggered else K, staggered),
    "the first block has 3 tokens, not 4": split_at(3, 11, 19, 27),
    "the first block has 5 tokens, not 4": split_at(5, 13, 21),
}


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("bug", BLOCK_BUGS)
def test_wrong_block_bounds_are_diagnosed(monkeypatch: pytest.MonkeyPatch, bug: str, shown: str) -> None:
    where, found = diagnosed(monkeypatch, "pegasusx_ref.model.encoder.block_bounds", BLOCK_BUGS[bug], SHOWN[shown])
    is_right_on_even_layers = BLOCK_BUGS[bug](29, 8, False) == block_bounds(29, 8, False)
    assert where.startswith(f"encoder.layers.{int(is_right_on_even_layers)}.")
    assert found == [bug]


@pytest.mark.parametrize("name", PLACES)
def test_each_bug_is_diagnosed_from_the_next_tensor(name: str) -> None:
    """The candidate does not show the wrong tensor itself."""
    config = CONFIGS["published"]
    model, tensors, op = operation_at(config, name)
    candidate = from_backend(random_model(config, 0, "numpy", "float32"))
    operation = next(check.operation for check in verify(model, tensors, INPUTS, "float32").table if check.name == name)
    for bug, variant in KNOWN_BUGS[operation](op).items():
        with np.errstate(over="ignore"):
            wrong = np.maximum(variant(), np.finfo(np.float32).min).astype(np.float32)
        if wrong.shape != tensors[name].shape or np.isnan(wrong).any():
            continue  # the candidate cannot continue with it
        if is_the_same(wrong, tensors[name]) or re.search("post-LN|its output is|after the LayerNorm", bug):
            continue  # no difference, or the bug needs the tensor that is not shown
        with listen(partial(lambda wrong, *_: wrong, wrong), name), np.errstate(all="ignore"):
            shown = dict(candidate(INPUTS))
        del shown[name]
        report = verify(model, shown, INPUTS, "float32")
        found = {(diagnosis.mistake, diagnosis.where.replace("*", "1")) for diagnosis in report.diagnoses}
        assert (bug, name) in found
        assert {where for _, where in found} == {name}
        assert {mistake for mistake, _ in found} <= alike(bug, wrong, op, operation)


@pytest.mark.parametrize("shift", [-4, 4])
def test_padding_that_a_map_removes_wrongly_is_diagnosed(shift: int) -> None:
    """K/2 rows in front of the tokens were removed though they are tokens, or kept."""
    name = "encoder.layers.1.tokens.fc1"
    model, tensors, _ = operation_at(CONFIGS["published"], name)
    report = verify(model, broken(tensors, name, np.roll(tensors[name], shift, axis=1)), INPUTS, "float32")
    assert [diagnosis.mistake.partition(":")[0] for diagnosis in report.diagnoses] == [
        f"rows are K/2 positions too {'late' if shift > 0 else 'early'}"
    ]


def test_an_eps_is_named_though_the_rounding_errors_of_all_rows_have_a_mean() -> None:
    """As those of torch's LayerNorm, which are not zero in the mean."""
    config = CONFIGS["without scale"].replace(init_std=0.02)
    inputs = {"input_ids": _rng.integers(106, 256, (1, 2000)), "decoder_input_ids": _rng.integers(106, 256, (1, 3))}
    model, name = random_model(config, 0), "encoder.layers.0.tokens.self_attn_layer_norm"
    tensors = dict(from_backend(random_model(config, 0, "numpy", "float32"))(inputs))
    x = tensors["encoder.layers.0.tokens.input"].astype(np.float64)
    weight, bias = (
        model.weights[f"encoder.layers.0.self_attn_layer_norm.{part}"].astype(np.float64) for part in ("weight", "bias")
    )
    wrong = (layer_norm(x, weight, bias, 1e-6) - bias) * (1 + 2.0**-26) + bias
    report = verify(model, broken(tensors, name, wrong), inputs, "float32")
    assert [diagnosis.mistake for diagnosis in report.diagnoses] == ["LayerNorm's eps is 1e-06, not 1e-05"]


def test_batch_rows_without_a_real_token_explain_nothing() -> None:
    inputs = {
        "input_ids": _rng.integers(106, 256, (2, 29)),
        "attention_mask": np.arange(29) < np.array([[29], [6]]),
        "decoder_input_ids": _rng.integers(106, 256, (2, 7)),
    }
    name = "encoder.layers.0.self_attn.local.1.context"  # of padding in the second text
    model = random_model(CONFIGS["published"], 0)
    tensors = dict(from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))(inputs))
    noisy = tensors[name] * (1 + 0.1 * np.random.default_rng(0).standard_normal(tensors[name].shape))
    report = verify(model, broken(tensors, name, noisy), inputs, "float32")
    assert report.first_failure is not None
    assert report.diagnoses == []


def test_an_extra_bias_is_diagnosed() -> None:
    model, tensors, _ = operation_at(CONFIGS["published"], "lm_head")
    bias = np.random.default_rng(2).standard_normal(256)
    report = verify(model, broken(tensors, "lm_head", tensors["lm_head"] + bias), INPUTS, "float32")
    assert [diagnosis.mistake for diagnosis in report.diagnoses] == ["a bias is added"]
    with_noise = tensors["lm_head"] + bias + 1e-4 * np.random.default_rng(3).standard_normal((1, 7, 256))
    assert verify(model, broken(tensors, "lm_head", with_noise), INPUTS, "float32").diagnoses == []


def test_another_matrix_is_diagnosed_from_enough_rows() -> None:
    model = random_model(CONFIGS["published"], 0)
    own = np.random.default_rng(2).standard_normal((256, 32))
    for length, expected in (
        (60, ["the weight differs: the head is not tied to the embeddings"]),
        (30, []),
    ):
        inputs = INPUTS | {"decoder_input_ids": _rng.integers(106, 256, (1, length))}
        tensors = dict(from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))(inputs))
        wrong = broken(tensors, "lm_head", tensors["decoder.layer_norm"] @ own.T)
        assert [diagnosis.mistake for diagnosis in verify(model, wrong, inputs, "float32").diagnoses] == expected


def test_global_tokens_that_are_not_updated_are_diagnosed() -> None:
    name = "encoder.layers.1.globals.input"
    tensors = dict(from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))(INPUTS))
    wrong = tensors | {name: tensors["encoder.embed_global"]}
    report = verify(random_model(CONFIGS["published"], 0), wrong, INPUTS, "float32")
    expected = "global tokens are not updated: each layer begins with their embeddings"
    assert [d.mistake for d in report.diagnoses] == [expected]


def test_a_bug_in_every_block_is_one_diagnosis() -> None:
    """The candidate shows only the output of attention."""
    candidate = from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))
    with listen(lambda _, scores: np.maximum(scores, -1e30) * np.float32(8**0.5), "encoder.*.scores"):
        tensors = candidate(INPUTS)
    hidden = ("scores", "probs", "context")
    report = verify(random_model(CONFIGS["published"], 0), without(tensors, hidden), INPUTS, "float32")
    assert report.first_failure is not None
    assert report.first_failure.name == "encoder.layers.0.self_attn.tokens.out_proj"
    (diagnosis,) = report.diagnoses
    assert diagnosis.mistake == "scores are not scaled"
    assert diagnosis.where == "encoder.layers.0.self_attn.local.*.scores"


# --- what a candidate may return -------------------------------------------------------------------------------------


def with_mask(scores: np.ndarray, hidden: float) -> np.ndarray:
    return np.where(scores < HIDDEN, np.float32(hidden), scores)


@pytest.mark.parametrize("hidden", [-np.inf, -1e4, np.finfo(np.float32).min])
def test_any_usual_mask_passes_and_a_wrong_one_is_diagnosed(hidden: float) -> None:
    model = random_model(CONFIGS["published"], 0)
    tensors = dict(from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))(INPUTS))
    tensors |= {name: with_mask(x, hidden) for name, x in tensors.items() if name.endswith(".scores")}
    assert verify(model, tensors, INPUTS, "float32").passed
    name = "decoder.layers.0.self_attn.scores"
    q, k = (split_heads(tensors[f"decoder.layers.0.self_attn.{p}_proj"], 4) for p in "qk")
    ahead = np.tril(np.ones((7, 7), dtype=bool), 1)
    wrong = np.where(ahead, (q * np.float32(8**-0.5)) @ k.swapaxes(2, 3), np.float32(hidden))
    report = verify(model, tensors | {name: wrong}, INPUTS, "float32")
    assert [d.mistake for d in report.diagnoses] == ["the causal mask lets each token see the next one"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [(29, 13), (24, 3), (17, 9)])
def test_without_the_mask_of_the_source_only_scores_are_wrong(dtype: str, lengths: tuple[int, int]) -> None:
    """What follows from them is computed from the candidate's own rows of padding."""
    inputs = {name: np.repeat(INPUTS[name], 2, axis=0) for name in ("input_ids", "decoder_input_ids")}
    inputs["attention_mask"] = np.arange(29) < np.array(lengths)[:, None]
    candidate = from_backend(random_model(CONFIGS["published"], 0, "numpy", dtype))
    tensors = candidate({name: array for name, array in inputs.items() if name != "attention_mask"})
    report = verify(random_model(CONFIGS["published"], 0), tensors, inputs, dtype)
    assert {check.name.rpartition(".")[2] for check in report.table if check.verdict == "fail"} == {"scores"}
    assert [finding.diagnoses[0].mistake for finding in report.findings] == [NO_PADDING_MASK]


def test_in_float64_rounding_is_no_effect_of_a_bug() -> None:
    """BLAS rounds the products of some rows otherwise than those of all, where there are more than a few."""
    mask = np.arange(70) < np.array([[70], [15]])
    inputs = {"input_ids": _rng.integers(106, 6000, (2, 70)), "decoder_input_ids": _rng.integers(106, 6000, (2, 4))}
    candidate = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, dtype="float64")
    golden = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, "golden", dtype="float64")
    report = verify(golden, from_backend(candidate)(inputs), inputs | {"attention_mask": mask}, "float64")
    assert [finding.diagnoses[0].mistake for finding in report.findings] == [NO_PADDING_MASK]


@pytest.mark.parametrize("name", ["encoder.layers.0.tokens.activation", "encoder.layers.0.self_attn.local.0.scores"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (1, 1, 2), (29, 1, 64), (1, 4, 2, 3, 5)])
def test_a_tensor_of_any_shape_is_a_finding(name: str, shape: tuple[int, ...]) -> None:
    model = random_model(CONFIGS["published"], 0)
    tensors = dict(from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))(INPUTS))
    found = verify(model, tensors | {name: np.ones(shape)}, INPUTS, "float32").first_failure
    assert found is not None
    assert (found.name, found.note[:5]) == (name, "shape")


def test_equal_rows_do_not_count_for_the_fit_of_a_matrix() -> None:
    """Global tokens are the same in every batch row: ten batch rows have four different rows of them, not forty."""
    name = "encoder.layers.0.self_attn.globals.q_proj"
    model = random_model(CONFIGS["published"], 0)
    inputs = {key: np.repeat(array, 12, axis=0) for key, array in INPUTS.items()}
    tensors = dict(from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))(inputs))
    report = verify(model, tensors | {name: np.tanh(tensors[name])}, inputs, "float32")
    assert report.first_failure is not None
    assert (report.first_failure.name, report.diagnoses) == (name, [])


def test_positions_that_restart_are_not_low_precision() -> None:
    inputs = {"input_ids": _rng.integers(106, 256, (1, 300)), "decoder_input_ids": INPUTS["decoder_input_ids"]}
    weights = {name: rounded(w, "bfloat16") for name, w in random_model(CONFIGS["published"], 0).state_dict().items()}
    model = PegasusXForConditionalGeneration(CONFIGS["published"], weights, random_model(CONFIGS["published"], 0).ops)
    tokens = rounded(from_backend(model)(inputs)["encoder.embed_tokens"], "bfloat16")
    again = tokens + sinusoidal_positions(0, 300, 32)[np.arange(300) % 256]
    dump = {"encoder.embed_tokens": tokens, "encoder.embeddings": rounded(again, "bfloat16")}
    report = verify(model, dump, inputs, "bfloat16")
    assert report.first_failure is not None
    bug = "positions start again after 256 tokens"
    assert (report.first_failure.name, [d.mistake for d in report.diagnoses]) == ("encoder.embeddings", [bug])


def test_an_encoder_output_that_is_normalized_again_is_diagnosed() -> None:
    model = random_model(CONFIGS["published"], 0)
    tensors = dict(from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))(INPUTS))
    place = "decoder.layers.0.encoder_attn"
    weight, bias = (model.weights[f"{place}_layer_norm.{part}"] for part in ("weight", "bias"))
    again = layer_norm(tensors["encoder.layer_norm"], weight, bias, CONFIGS["published"].layer_norm_eps)
    wrong = linear(again, model.weights[f"{place}.k_proj.weight"])
    report = verify(model, tensors | {f"{place}.k_proj": wrong}, INPUTS, "float32")
    assert report.diagnoses[0].mistake == "the encoder's output is normalized again, as queries are"


def test_keys_used_as_values_are_diagnosed_in_blocks() -> None:
    model = random_model(CONFIGS["published"], 0)
    tensors = dict(from_backend(random_model(CONFIGS["published"], 0, "numpy", "float32"))(INPUTS))
    place = "encoder.layers.1.self_attn"
    keys = [split_heads(tensors[f"{place}.{stream}.k_proj"], 4) for stream in ("globals", "tokens")]
    wrong = tensors[f"{place}.local.1.probs"] @ np.concatenate([keys[0], keys[1][:, :, 4:12]], axis=2)
    report = verify(model, tensors | {f"{place}.local.1.context": wrong}, INPUTS, "float32")
    assert [d.mistake for d in report.diagnoses] == ["keys are used as values"]
