"""`verify(gradients=True)`: tolerances of golden gradients, tensors that are not shown, captures, dumps, errors."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model, reference
from click.testing import CliRunner
from fault_table import CONFIG, is_shown
from hypothesis import given, settings
from safetensors.numpy import save_file
from strategies import seeds

from pegasusx_ref import DEMO_CHECKPOINT, InputError, PegasusXForConditionalGeneration
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.cli import main
from pegasusx_ref.golden import attention, embedding, feed_forward, global_local, head, normalization
from pegasusx_ref.golden.feed_forward import SLOPES
from pegasusx_ref.verification import Report, from_backend, from_dump, from_transformers, verify
from pegasusx_ref.verification.checking.arithmetics import ARITHMETICS
from pegasusx_ref.verification.gradients.diagnosis import variants
from pegasusx_ref.verification.gradients.rounded import Rounded
from pegasusx_ref.verification.known_differences import parse_known
from pegasusx_ref.verification.vectors import check_vector, read_vector

pytestmark = pytest.mark.unwatched

VECTORS = Path(__file__).parents[1] / "spec" / "vectors"
_rng = np.random.default_rng(0)
BATCH: dict[str, Any] = {
    "input_ids": _rng.integers(2, 256, (2, 29)),
    "attention_mask": np.arange(29) < np.array([[29], [17]]),
    "decoder_input_ids": _rng.integers(2, 256, (2, 6)),
    "decoder_attention_mask": np.arange(6) < np.array([[6], [4]]),
    "labels": _rng.integers(2, 256, (2, 6)),  # those of padding count, as they do in transformers
    "label_smoothing": 0.1,
}
GOLDEN = reference(CONFIG, 0, "float32")
TENSORS = dict(from_backend(random_model(CONFIG, 0, "golden", "float32"))(BATCH))


def check(changes: Any = (), kept: Callable[[str], bool] = lambda _: True, **options: Any) -> Report:
    """Verify a golden run in float32, with some tensors changed, and others not shown."""
    tensors = {name: tensor for name, tensor in (TENSORS | dict(changes)).items() if kept(name)}
    return verify(GOLDEN, tensors, BATCH, gradients=True, **options)


# --- arrays that carry their rounding errors


def backward_runs(rng: np.random.Generator) -> dict[str, tuple[Callable[..., Any], list[np.ndarray]]]:
    """List golden backward functions, each with arrays that it may get."""
    B, T, D, M, V, G = 2, 9, 16, 24, 12, 2
    ids, labels = rng.integers(0, V, (B, T)), rng.integers(0, V, (B, T))
    weight, scale = rng.standard_normal((M, D)), rng.standard_normal(D)
    mask = rng.random((B, T)) < 0.8

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    def attending(*arrays: Any) -> Any:
        inputs: Any = (*arrays[:-2], [arrays[-2]], arrays[-1], mask, [(0, T)])
        return global_local.global_local_attention_backward(*inputs)

    def probs(rows: int, keys: int) -> np.ndarray:
        return attention.softmax(normal(B, 2, rows, keys))

    x, grad = normal(B, T, D), normal(B, T, D)
    tokens, globals_ = ([normal(B, 2, n, 4) for _ in range(4)] for n in (T, G))
    streams = [tokens[0], globals_[0], *tokens[1:], *globals_[1:]]
    return {
        "layer_norm": (
            lambda grad, x: normalization.layer_norm_backward(grad, x, scale.astype(x.dtype), 1e-5),
            [grad, x],
        ),
        "linear": (lambda grad, x: feed_forward.linear_backward(grad, x, weight.astype(x.dtype)), [normal(B, T, M), x]),
        "embedding": (lambda grad: embedding.embed_tokens_backward(grad, ids, V, 4.5, 0), [grad]),
        "cross_entropy": (lambda logits: head.cross_entropy_backward(logits, labels, 0.1), [normal(B, T, V)]),
        "attention": (attending, [*streams, probs(T, G + T), probs(G, G + T)]),
        **{
            name: (lambda grad, x, name=name: feed_forward.activation_backward(grad, x, name), [grad, x])
            for name in SLOPES
        },
    }


@pytest.mark.parametrize("name", backward_runs(_rng))
@settings(max_examples=10)
@given(seed=seeds)
def test_golden_functions_return_the_errors_of_float32(name: str, seed: int) -> None:
    function, arrays = backward_runs(np.random.default_rng(seed))[name]
    found = function(*(x.astype(np.float32) for x in arrays))
    exact = [Rounded.exact(x.astype(np.float32).astype(np.float64), ARITHMETICS["float32"]) for x in arrays]
    right = function(*exact)
    for one, other in zip(*([x] if not isinstance(x, tuple) else x for x in (found, right)), strict=True):
        assert one.shape == other.shape
        error, expected = np.square(one - other.value).sum(), other.variance.sum()
        assert error <= 3**2 * expected
        assert expected <= 30**2 * error or not error


@pytest.mark.parametrize("large", [1.0, 100.0])
def test_sums_over_tokens_may_lose_small_terms_in_bfloat16(large: float) -> None:
    dtype = numpy_dtype("bfloat16")
    grad = np.abs(np.random.default_rng(0).standard_normal((1, 2000, 4))).astype(dtype)
    grad[0, 0] = large
    total = np.zeros(4, dtype)
    for row in grad[0]:
        total = total + row
    right = Rounded.exact(grad.astype(np.float64), ARITHMETICS["bfloat16"]).sum(axis=(0, 1))
    error = (total.astype(np.float64) - right.value) / np.sqrt(right.variance)
    assert 0.3 < np.abs(error).max() < 3


def test_other_functions_are_errors() -> None:
    x: Any = Rounded.exact(np.ones(3), ARITHMETICS["float32"])
    for function in (np.sin, np.sort, np.add.reduce):
        with pytest.raises(TypeError, match=r"operand type\(s\)|no implementation found"):
            function(x)


# --- runs


@pytest.mark.parametrize(
    "kept",
    [
        lambda _: True,
        lambda name: not name.removesuffix(".grad").endswith(("scores", "probs")),
        lambda name: is_shown(name.removesuffix(".grad")),
        lambda name: name.endswith((".weight.grad", ".bias.grad", "lm_head")),
    ],
    ids=["all", "fused", "states", "parameters"],
)
def test_a_right_run_passes(kept: Callable[[str], bool]) -> None:
    report = check(kept=kept)
    assert report.passed, report
    assert sum(check.name.endswith(".grad") for check in report.table) == sum(
        kept(name) for name in TENSORS if name.endswith(".grad")
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4, 12))
def test_drawn_runs_of_transformers_pass(number: int) -> None:
    survey = pytest.importorskip("gradient_survey")
    *_, report = survey.verify_run(number, 1)
    assert report.passed, report


def test_findings_are_in_backward_order_after_those_of_the_forward_pass() -> None:
    names = (
        "shared.weight.grad",
        "encoder.layers.0.fc1.bias.grad",
        "decoder.layers.0.self_attn.q_proj.grad",
        "lm_head",
    )
    report = check({name: TENSORS[name] * np.float32(1.001 + number) for number, name in enumerate(names)})
    found = [finding.first.name for finding in report.findings]
    assert [name for name in found if name in names] == list(reversed(names))
    assert found[0] == "lm_head"


def test_likely_bugs() -> None:
    name = "decoder.layers.0.self_attn.k_proj.weight.grad"
    changes: list[tuple[Callable[[np.ndarray], np.ndarray], str]] = [
        (lambda x: 2 * x, "the gradient is 2 times the right one"),
        (lambda x: x / 15, "the gradient is the right one divided by 15"),
        (lambda x: x.T, "the gradient is transposed"),
        (lambda x: 0 * x, "the gradient is 0: nothing is passed back"),
    ]
    for change, mistake in changes:
        report = check({name: change(TENSORS[name])})
        assert [diagnosis.mistake for diagnosis in report.diagnoses] == [mistake]
        assert mistake in str(report)
    assert check({name: TENSORS[name][::-1]}).diagnoses == []


def test_the_right_gradient_is_no_bug() -> None:
    value = _rng.standard_normal((4, 6))
    found = value.copy()
    found[0, 0] += 1e-6  # one wrong element, and the factor is almost 1
    assert not any(np.array_equal(wrong, value) for _, wrong in variants(value, found))


def test_nan_and_shapes_are_flagged_where_they_begin() -> None:
    name = "decoder.layers.1.fc1.grad"
    broken = TENSORS[name].copy()
    broken[0, 2, 3] = np.nan
    report = check({name: broken})
    assert (report.first_failure.name, report.first_failure.note) == (name, "NaN or infinite")  # type: ignore[union-attr]
    report = check({name: TENSORS[name][:, :4]})
    assert [finding.first.name for finding in report.findings] == [name]
    assert "shape (2, 4, 64) where (2, 6, 64) is expected" in str(report)


def test_padding_rows_count_unless_a_query_sees_no_key() -> None:
    name = "encoder.layers.1.self_attn.tokens.k_proj.grad"
    leaking = TENSORS[name].copy()
    leaking[1, 20] += 1e-6
    report = check({name: leaking})
    assert report.first_failure is not None
    assert (report.first_failure.name, report.first_failure.at[:2]) == (name, (1, 20))
    masked = BATCH | {"decoder_attention_mask": np.arange(6) >= np.array([[0], [1]])}
    tensors = dict(from_backend(random_model(CONFIG, 0, "golden", "float32"))(masked))
    tensors["decoder.layers.0.self_attn.scores.grad"][1, :, 0] = 1.0
    report = verify(GOLDEN, tensors, masked, gradients=True)
    assert "decoder.layers.0.self_attn.scores.grad" not in {
        check.name for check in report.table if check.verdict == "fail"
    }


def test_rows_of_padding_are_the_candidates_own() -> None:
    ids = np.where(BATCH["decoder_attention_mask"], BATCH["decoder_input_ids"], 7)  # no forward row that counts changes
    tensors = dict(from_backend(random_model(CONFIG, 0, "golden", "float32"))(BATCH | {"decoder_input_ids": ids}))
    del tensors["shared.weight.grad"]  # that of other ids
    for hidden in ("none", "probs", "scores"):
        kept = {name: x for name, x in tensors.items() if hidden not in name}
        assert verify(GOLDEN, kept, BATCH, gradients=True).passed, hidden


def test_known_differences_and_maps_have_gradients() -> None:
    name = "decoder.layers.1.fc1.weight.grad"
    changed = {name: TENSORS[name] * np.float32(1.01)}
    assert check(changed, known=["decoder.layers.1.*.grad: clipped, error < 1"]).passed
    assert parse_known("*.fc1.weight.grad: other").matches(name)
    from pegasusx_ref.verification.candidates.mapping import map_names

    mapping = {"decoder.layers.{i}.fc1.grad": "d{i}", "decoder.layers.{i}.fc1.weight.grad": "w{i}", "labels": "y"}
    mapped = map_names(
        {
            "d1": TENSORS["decoder.layers.1.fc1.grad"],
            "w1": TENSORS[name],
            "y": BATCH["labels"],
            "d0": np.ones(1),
            "w0": np.ones(1),
        },
        mapping,
        CONFIG,
    )
    assert {"decoder.layers.1.fc1.grad", name, "labels"} <= set(mapped)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({"labels": None}, {}, "labels are missing: gradients are those of a loss"),
        ({"labels": BATCH["labels"][:, :3]}, {}, r"labels have shape \(2, 3\), but the target has \(2, 6\)"),
        ({"label_smoothing": 2}, {}, "label_smoothing=2: expected a number from 0 to 1"),
        ({}, {"rows": [0]}, "gradients cannot be combined with layers or rows"),
        ({}, {"layers": ["encoder.0"]}, "gradients cannot be combined with layers or rows"),
        ({}, {"gradients": False}, "inputs have label_smoothing, labels: a run takes"),
    ],
)
def test_wrong_inputs_are_errors(inputs: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        verify(GOLDEN, TENSORS, BATCH | inputs, **({"gradients": True} | options))


def test_a_candidate_without_gradients_is_an_error_and_gradients_that_are_not_checked_a_hint() -> None:
    with pytest.raises(InputError, match="the candidate has no gradients: name them as"):
        check(kept=lambda name: not name.endswith(".grad"))
    batch = {name: x for name, x in BATCH.items() if not name.startswith("label")}
    report = verify(GOLDEN, TENSORS, batch)
    assert report.hints == ["gradients are not checked: pass gradients=True, or --gradients"]
    assert report.coverage.is_complete


# --- transformers


def hf_model() -> Any:
    transformers = pytest.importorskip("transformers")
    from hf_reference import eager_hf_reference

    return eager_hf_reference(transformers, GOLDEN, "float32")


def test_the_gradients_of_the_model_are_those_of_before() -> None:
    import torch

    model = hf_model()
    bias = model.model.encoder.layers[0].fc1.bias
    bias.grad = torch.ones_like(bias)
    frozen = model.model.decoder.layers[0].fc1.weight.requires_grad_(False)
    report = verify(GOLDEN, from_transformers(model), BATCH, known="transformers", gradients=True)
    assert report.passed, report
    assert report.coverage.missing == ["decoder.layers.0.fc1.weight.grad"]
    assert bool((bias.grad == 1).all())
    assert frozen.grad is model.model.shared.weight.grad is None
    assert not bias._backward_hooks


def test_a_gradient_that_stops_is_flagged() -> None:
    model = copy.deepcopy(hf_model())
    norm = model.model.encoder.layers[1].global_self_attn_layer_norm
    right = norm.forward
    norm.forward = lambda x: right(x.detach())  # LayerNorm still has gradients of its own parameters
    report = verify(GOLDEN, from_transformers(model), BATCH, known="transformers", gradients=True)
    assert report.first_failure is not None
    assert report.first_failure.name == "encoder.layers.1.globals.input.grad"


# --- files


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_checks_a_dump(tmp_path: Path) -> None:
    model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, backend="golden", dtype="float32")
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(106, 200, (1, n)) for name, n in (("input_ids", 9), ("decoder_input_ids", 3), ("labels", 3))
    }
    tensors, name = dict(from_backend(model)(batch)), "encoder.layers.0.fc1.bias.grad"
    kept = {key: np.ascontiguousarray(x) for key, x in tensors.items() if "probs" not in key}
    kept |= batch
    save_file(kept, tmp_path / "right.safetensors")
    save_file(kept | {name: tensors[name] / 9}, tmp_path / "wrong.safetensors")
    assert run("verify", "--gradients", "--dump", tmp_path / "right.safetensors").exit_code == 0
    result = run("verify", "--gradients", "--dump", tmp_path / "wrong.safetensors", "--html", tmp_path / "page.html")
    assert (result.exit_code, f"First wrong: {name}" in result.stdout) == (1, True)
    assert f"<code>{name}</code>" in (tmp_path / "page.html").read_text("utf-8")
    assert run("verify", "--gradients", "--suggest-inputs", tmp_path / "ids.npz").stdout.endswith(" --gradients\n")
    suggested = from_dump(tmp_path / "ids.npz")
    np.testing.assert_array_equal(suggested["labels"] == -100, ~suggested["decoder_attention_mask"])
    np.testing.assert_array_equal(suggested["labels"][0, :-1], suggested["decoder_input_ids"][0, 1:])
    result = run("verify", "--gradients", "--against", "numpy")
    assert (result.exit_code, "--gradients: numpy has no backward pass" in result.stderr) == (2, True)


@pytest.mark.slow
def test_the_command_checks_transformers() -> None:
    pytest.importorskip("transformers")
    result = run("verify", "--gradients", "--tokens", "9", "--target-tokens", "3", "--known", "transformers", "--all")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "shared.weight.grad" in result.stdout


@pytest.mark.parametrize("name", ["one-token", "less-than-a-block", "masked-block"])
def test_vectors_have_gradients(name: str) -> None:
    vector = read_vector(VECTORS / name)
    tensors = dict(vector.trace) | {key: x for key, x in vector.gradients.items() if key != "labels"}
    report = check_vector(vector, tensors, "float64")
    assert report.passed, report
    assert report.coverage.is_complete
    wrong = tensors | {"encoder.layers.0.tokens.fc1.grad": tensors["encoder.layers.0.tokens.fc1.grad"] * 1.001}
    assert check_vector(vector, wrong, "float64").first_failure.name == "encoder.layers.0.tokens.fc1.grad"  # type: ignore[union-attr]
    with pytest.raises(InputError, match="labels of the dump differ from the vector's"):
        check_vector(vector, tensors | {"labels": np.zeros((1, 1))}, "float64")
