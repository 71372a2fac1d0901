"""Findings: one for each fault, whatever follows from it."""

from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from backend_parameters import random_model, reference
from hf_reference import eager_hf_reference
from hypothesis import given
from hypothesis import strategies as st
from padded_batch import INPUTS

from pegasusx_ref import TRACE_POINTS, PegasusXConfig, PegasusXForConditionalGeneration, listen
from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.verification import Report, from_backend, from_transformers, verify
from pegasusx_ref.verification.coverage import blind_spots, coverage, nearest, suggested_inputs
from pegasusx_ref.verification.reports import as_dict, as_text

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
MODEL = reference(CONFIG, 0, "float32")
TENSORS = {name: x.copy() for name, x in from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS).items()}


def report_of(changed: dict[str, np.ndarray], **options: Any) -> Report:
    return verify(MODEL, TENSORS | changed, INPUTS, "float32", **options)


def failed(report: Report) -> list[str]:
    return [check.name for check in report.table if check.verdict == "fail"]


def test_one_bug_in_many_layers_is_one_finding() -> None:
    wrong = PegasusXForConditionalGeneration(
        CONFIG.replace(layer_norm_eps=1e-6), MODEL.state_dict(), get_backend("numpy", dtype="float32")
    )
    report = verify(MODEL, from_backend(wrong), INPUTS, "float32")
    (finding,) = report.findings
    assert finding.diagnoses[0].mistake == "LayerNorm's eps is 1e-06, not 1e-05"
    assert len(finding.checks) == len(failed(report)) > 10


def test_two_bugs_are_two_findings_each_with_its_diagnosis() -> None:
    late = TENSORS["encoder.embed_tokens"]
    scores = TENSORS["decoder.layers.1.encoder_attn.scores"]
    unscaled = np.where(scores > -1e30, scores, 0) * np.float32(8**0.5) + np.where(scores > -1e30, 0, scores)
    report = report_of({"encoder.embeddings": late, "decoder.layers.1.encoder_attn.scores": unscaled})
    assert [finding.first.name for finding in report.findings] == [
        "encoder.embeddings",
        "decoder.layers.1.encoder_attn.scores",
    ]
    assert [finding.diagnoses[0].mistake for finding in report.findings] == [
        "positions are missing",
        "scores are not scaled",
    ]
    assert (report.first_failure, report.diagnoses) == (report.findings[0].first, report.findings[0].diagnoses)
    text = as_text(report)
    assert text.splitlines()[0].startswith("First wrong: encoder.embeddings (add_positions)")
    assert "Also wrong: decoder.layers.1.encoder_attn.scores (scores)" in text
    assert [finding["tensors"][0] for finding in as_dict(report)["findings"]] == [
        "encoder.embeddings",
        "decoder.layers.1.encoder_attn.scores",
    ]


def test_a_layout_of_scores_and_probabilities_is_one_finding() -> None:
    G = CONFIG.num_global_tokens
    changed = {
        name: np.concatenate([x[..., G:], x[..., :G]], axis=-1)
        for name, x in TENSORS.items()
        if ".local." in name and name.endswith(("scores", "probs"))
    }
    report = report_of(changed)
    (finding,) = report.findings
    assert "a layout, not a fault" in finding.diagnoses[0].mistake
    assert {check.operation for check in finding.checks} == {"scores", "weighted_sum"}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_follows_from_a_number_that_is_not_finite_is_not_a_finding(number: float) -> None:
    """The run of a candidate: one NaN in a token reaches the global tokens, and from there everything."""
    name = "encoder.layers.0.tokens.fc1"

    def spoil(tensor: np.ndarray) -> np.ndarray:
        tensor = tensor.copy()
        tensor[0, 3, 5] = number
        return tensor

    model = random_model(CONFIG, 0, "numpy", "float32")
    with np.errstate(all="ignore"), listen(lambda _, tensor: spoil(tensor), name):
        tensors = from_backend(model)(INPUTS)
    report = verify(MODEL, tensors, INPUTS, "float32")
    assert failed(report) == [name]
    assert [check.name for finding in report.findings for check in finding.checks] == [name]
    checks = {check.name: check for check in report.table}
    assert checks["lm_head"].verdict == "pass"  # of the other text
    assert checks["encoder.layers.1.self_attn.global.context"].verdict in ("pass", "blind")


@pytest.mark.slow
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("at", ["encoder.layers.0.fc1", "decoder.layers.0.fc1"])
def test_a_mask_that_is_added_hides_no_number_that_is_not_finite(
    transformers: ModuleType, at: str, number: float
) -> None:
    """As in transformers: the lowest score plus NaN is NaN, so padded and later tokens reach the others."""
    candidate = eager_hf_reference(transformers, MODEL, "float32")

    def spoil(_: Any, __: Any, output: Any) -> Any:
        output[0, 2, 5] = number
        return output

    candidate.get_submodule(f"model.{at}").register_forward_hook(spoil)
    mask = np.arange(INPUTS["input_ids"].shape[1]) < np.array([[17], [29]])[: len(INPUTS["input_ids"])]
    report = verify(
        MODEL, from_transformers(candidate), INPUTS | {"attention_mask": mask}, "float32", known="transformers"
    )
    name = at.replace(".fc1", ".tokens.fc1") if at.startswith("encoder") else at
    assert [finding.first.name for finding in report.findings] == [name]


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e38])
@pytest.mark.parametrize("hidden", [("scores", "probs"), ("scores", "probs", "context", "q_proj", "k_proj", "v_proj")])
@pytest.mark.parametrize("part", ["q_proj", "k_proj"])
def test_numbers_that_are_not_finite_in_hidden_queries_and_keys(
    part: str, hidden: tuple[str, ...], number: float
) -> None:
    def spoil(_: str, tensor: np.ndarray) -> np.ndarray:
        tensor = tensor.copy()
        tensor[0, 3, 5] = number
        return tensor

    model, name = random_model(CONFIG, 0, "numpy", "float32"), f"encoder.layers.0.self_attn.tokens.{part}"
    with np.errstate(all="ignore"), listen(spoil, name):
        tensors = {name: x for name, x in from_backend(model)(INPUTS).items() if not name.endswith(hidden)}
    (finding, *others) = verify(MODEL, tensors, INPUTS, "float32").findings
    assert finding.first.name == (name if name in tensors else "encoder.layers.0.self_attn.tokens.out_proj")
    assert {other.first.name for other in others} <= {"encoder.layers.0.self_attn.globals.out_proj"}
    assert not any("axes" in diagnosis.mistake for diagnosis in finding.diagnoses)


def test_a_fault_beside_one_that_is_not_finite_is_found() -> None:
    first, second = "encoder.layers.0.tokens.fc1", "decoder.layers.0.fc1"
    spoiled = TENSORS[first].copy()
    spoiled[0, 3, 5] = np.nan
    report = report_of({first: spoiled, second: TENSORS[second] * np.float32(1.01)})
    assert [finding.first.name for finding in report.findings] == [first, second]


def test_what_is_computed_from_a_tensor_of_a_wrong_shape_follows_from_it() -> None:
    name, after = "encoder.layers.0.tokens.fc1", "encoder.layers.0.tokens.activation"
    other = TENSORS["encoder.layers.0.tokens.activation"] * np.float32(1.5)
    report = report_of({name: TENSORS[name][:, :, :7], after: other})
    assert [[check.name for check in finding.checks] for finding in report.findings] == [[name, after]] or [
        finding.first.name for finding in report.findings
    ] == [name]


def test_a_tensor_that_was_not_the_one_used_is_one_finding() -> None:
    """The dump is wrong, not the computation: what follows fails too, but would not from the expected tensor."""
    name = "encoder.layers.0.tokens.fc2"
    report = report_of({name: TENSORS[name] + np.float32(0.5)})
    assert [[check.name for check in finding.checks] for finding in report.findings] == [
        [name, "encoder.layers.0.tokens.output"]
    ]


def test_a_fault_after_a_wrong_tensor_is_still_found() -> None:
    name, after = "encoder.layers.0.tokens.fc2", "encoder.layers.0.tokens.output"
    changed = TENSORS[name] + np.float32(0.5)
    report = report_of({name: changed, after: TENSORS["encoder.layers.0.tokens.self_attn_residual"]})
    assert [finding.first.name for finding in report.findings][:2] == [name, after]


def test_coverage_names_what_is_missing_and_what_is_near() -> None:
    tensors = dict(TENSORS)
    tensors["encoder.layers.1.token.fc1"] = tensors.pop("encoder.layers.1.tokens.fc1")
    tensors["encoder.layers.7.tokens.fc1"] = np.zeros(3)
    tensors["something"], tensors["token.fc1"] = np.zeros(3), np.zeros(3)
    report = verify(MODEL, tensors, INPUTS, "float32")
    assert report.coverage.missing == ["encoder.layers.1.tokens.fc1"]
    assert report.coverage.unknown == {
        "encoder.layers.1.token.fc1": "encoder.layers.1.tokens.fc1",
        "encoder.layers.7.tokens.fc1": "",
        "something": "",
        "token.fc1": "tokens.fc1",
    }
    assert not report.coverage.is_complete
    assert report_of({}).coverage.is_complete
    *_, missing, unknown, _ = as_text(report).splitlines()
    assert missing == "Missing: encoder.layers.1.tokens.fc1"
    assert "encoder.layers.1.token.fc1 (encoder.layers.1.tokens.fc1?), " in unknown
    assert (
        "encoder.layers.7.tokens.fc1 (the run has no such layer or block), something, token.fc1 (tokens.fc1?)"
        in unknown
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("encoder.layers.0.fc1", "encoder.layers.0.tokens.fc1"),
        ("encoder.layers.1.self_attn.local.2.prob", "encoder.layers.1.self_attn.local.2.probs"),
        ("encoder.layers.1.self_attn.local.99.prob", ""),  # no such block
        ("encoder.layers.9.fc1", ""),  # no such layer
        ("decoder.layers.1.tokens.fc1", "decoder.layers.1.fc1"),
        ("encoder.norm", "encoder.layer_norm"),
        ("decoder.embedding", "decoder.embeddings"),
        ("encoder.unlike", ""),
        ("lm_heads", "lm_head"),
    ],
)
def test_the_nearest_name_is_on_the_same_side_and_in_the_run(name: str, meant: str) -> None:
    assert report_of({name: np.zeros(3)}).coverage.unknown == {name: meant}


@pytest.mark.slow
@given(st.sampled_from(sorted(TRACE_POINTS)[:-1]), st.data())
def test_a_misspelt_name_is_near_one_of_its_own_side(point: str, data: st.DataObject) -> None:
    run = {point.replace("{i}", "1").replace("{n}", "2") for point in TRACE_POINTS}
    name = point.replace("{i}", "1").replace("{n}", "2")
    at = data.draw(st.integers(max(8, len(name) - len(point.rpartition("}")[2]) + 1), len(name)))
    found = nearest(name[:at] + data.draw(st.sampled_from("xyz_")) + name[at:], run)
    assert found in run
    assert found[:8] == name[:8]


@pytest.mark.parametrize("layers", [None, ["encoder.0"]])
def test_any_key_may_be_unknown(layers: list[str] | None) -> None:
    """Of other types, of thousands of digits, with control characters; and there may be thousands."""
    odd: dict[Any, np.ndarray] = {
        7: np.zeros(1),
        10**5000: np.zeros(1),
        ("a", 1): np.zeros(1),
        f"encoder.layers.{'9' * 5000}.tokens.fc1": np.zeros(1),
        f"x.{'9' * 5000}": np.zeros(1),
        "\x1b[2J": np.zeros(1),
    }
    report = report_of(odd, layers=layers)
    assert len(report.coverage.unknown) == (len(odd) if layers is None else 0)
    text = as_text(report)
    assert "\x1b" not in text
    assert len(max(text.splitlines(), key=len)) < 1500
    as_dict(report)


def test_only_names_that_are_listed_have_a_nearest_one() -> None:
    many = {f"transformer.h.{number}.mlp.fc{number}": "" for number in range(5000)}
    with patch("pegasusx_ref.verification.coverage.nearest", side_effect=lambda *_: "lm_head") as search:
        found = coverage(["lm_head"], [], many).unknown
    assert search.call_count == 10
    assert list(found) == sorted(many)
    assert list(found.values()) == ["lm_head"] * 10 + [""] * 4990


@pytest.mark.parametrize("preset", ["tiny", "base"])
@pytest.mark.parametrize("block_size", [2, 4, 8, 512])
def test_suggested_inputs_have_no_blind_spot(preset: str, block_size: int) -> None:
    config = PegasusXConfig.preset(preset, block_size=block_size)
    inputs = suggested_inputs(config)
    assert blind_spots(config, inputs["attention_mask"], inputs["decoder_attention_mask"]) == []
    one = np.ones((1, config.block_size), dtype=bool)
    assert len(blind_spots(config, one, one[:, :1])) == 6


@pytest.mark.parametrize("layers", [["encoder.1"], ["decoder.0", "encoder.0"], ["encoder.0-1", "decoder.1"]])
def test_single_layers_are_checked_from_the_candidate_s_tensors(layers: list[str]) -> None:
    wrong = {"encoder.layers.1.tokens.fc1": TENSORS["encoder.layers.1.tokens.fc1"] * np.float32(1.01)}
    report = report_of(wrong, layers=layers)
    places = [f"{part[:7]}.layers.{n}." for part in layers for n in part[8:].split("-")]
    assert all(check.name.startswith(tuple(places)) for check in report.table)
    assert bool(report.findings) == ("encoder.layers.1." in places)
    whole = {check.name: check for check in report_of(wrong).table}
    assert all(check.rho == pytest.approx(whole[check.name].rho) for check in report.table)
    assert report.coverage.is_complete


def test_single_rows_of_the_batch_are_checked() -> None:
    changed = TENSORS["decoder.layers.0.fc1"].copy()
    changed[1] *= np.float32(1.01)
    assert report_of({"decoder.layers.0.fc1": changed}, rows=[0]).passed
    report = report_of({"decoder.layers.0.fc1": changed}, rows=[1])
    assert report.first_failure is not None
    assert report.first_failure.at[0] == 1
    assert np.argwhere(report.rows["decoder.layers.0.fc1"].is_wrong)[0].tolist() == [1, 0]
    assert np.isnan(report.rows["decoder.layers.0.fc1"].rho[0]).all()


def test_a_layerwise_candidate_shows_the_same_tensors() -> None:
    for backend in ("numpy", "torch"):
        model = random_model(CONFIG, 0, backend, "float32")
        whole, by_layer = from_backend(model)(INPUTS), from_backend(model, layerwise=True)(INPUTS)
        assert list(whole) == list(by_layer)
        for name in reversed(list(whole)):
            assert np.array_equal(whole[name], by_layer[name]), name


def test_a_few_wrong_rows_are_counted_and_named() -> None:
    """As of a race, which spoils some rows of a tensor."""
    name = "encoder.layers.0.tokens.fc1"
    raced = TENSORS[name].copy()
    for row in ((0, 3), (0, 11), (1, 16)):
        raced[row] *= np.float32(0.99)
    report = report_of({name: raced})
    assert as_text(report).splitlines()[0].endswith("; 3 of 46 rows: [0, 3], [0, 11], [1, 16]")
    assert as_dict(report)["findings"][0]["rows"] == {"wrong": 3, "checked": 46, "first": [[0, 3], [0, 11], [1, 16]]}


def test_rows_are_not_listed_where_most_are_wrong() -> None:
    name = "encoder.layers.0.tokens.fc1"
    most = TENSORS[name] * np.float32(0.99)
    most[0, 0] = TENSORS[name][0, 0]
    assert as_text(report_of({name: most})).splitlines()[0].endswith("; 45 of 46 rows")


def test_the_text_repeats_nothing_and_explains_its_words() -> None:
    name = "encoder.layers.0.tokens.fc1"
    lost = TENSORS[name] * np.float32(np.nan)
    lines = as_text(report_of({name: lost})).splitlines()
    assert lines[0] == f"First wrong: {name} (linear): NaN or infinite at [0, 0, 0]"
    assert not any(line.startswith("Likely bug") for line in lines)
    assert lines[-1] == "blind: rounding would hide all but gross errors"
    shown = {name: TENSORS[name] for name in ("encoder.layer_norm", "lm_head")}
    report = verify(MODEL, shown, INPUTS, "float32")
    assert "wide" not in as_text(report)
    assert as_text(report, everything=True).splitlines()[-1].startswith("wide: the candidate does not show all inputs")
    one = verify(MODEL, {"lm_head": TENSORS["lm_head"]}, INPUTS, "float32")
    assert "\n1 tensor in float32: 1 pass\n" in "\n" + as_text(one)


def test_notes_name_what_the_inputs_cannot_show_and_the_remedy() -> None:
    inputs = {"input_ids": [[110]], "decoder_input_ids": [[0]]}
    tensors = from_backend(random_model(CONFIG, 0, "numpy", "float32"))({n: np.array(x) for n, x in inputs.items()})
    report = verify(MODEL, tensors, inputs, "float32")
    assert "faults of blocks (1 token fits into one block of 8)" in report.notes
    assert "faults of late positions (1 token, below 1024)" in report.notes
    *_, line = (line for line in as_text(report).splitlines() if not line.startswith("blind"))
    assert line.endswith(". `pegasusx-ref verify --suggest-inputs FILE` writes inputs that can")
    assert "faults of blocks (5 tokens fit into one block of 8)" in blind_spots(CONFIG, *np.ones((2, 2, 5), dtype=bool))
