"""Known differences: their lines, their limits, and what they cover."""

import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model, reference
from hypothesis import given
from hypothesis import strategies as st

from pegasusx_ref import TRACE_POINTS, InputError, PegasusXConfig, listen
from pegasusx_ref.golden.embedding import sinusoidal_positions
from pegasusx_ref.tracing.trace_points import general
from pegasusx_ref.verification import Report, from_backend, verify
from pegasusx_ref.verification.checking.arithmetics import get_arithmetic
from pegasusx_ref.verification.checking.error_bounds import position_errors
from pegasusx_ref.verification.known_differences import (
    Known,
    KnownDifference,
    can_match,
    parse_known,
    read_known,
)
from pegasusx_ref.verification.reports import as_dict, as_html, as_junit, as_text
from pegasusx_ref.verification.shipped_files import IMPLEMENTATIONS

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (2, 21)),
    "decoder_input_ids": _rng.integers(106, 256, (2, 5)),
}
MODEL = reference(CONFIG, 0, "float32")
TENSORS = {name: np.array(x) for name, x in from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS).items()}
FIRST, SECOND = "encoder.layers.0.tokens.fc2", "decoder.layers.1.final_layer_norm"


def wrong(known: Any) -> Report:
    """Verify tensors of which two are wrong, by 0.5 and by 0.01."""
    changed = {FIRST: TENSORS[FIRST] + 0.5, SECOND: TENSORS[SECOND] + 0.01}
    return verify(MODEL, TENSORS | changed, INPUTS, "float32", known)


def test_a_known_difference_is_listed_and_does_not_fail() -> None:
    report = wrong([f"{FIRST}: half too large, error < 0.51", "decoder.*: ours"])
    assert report.passed
    assert [checks[0].name for checks in report.known.values()] == [FIRST, SECOND]
    assert {check.verdict for check in report.table if check.name in (FIRST, SECOND)} == {"known"}
    assert [difference.reason for difference in report.known] == ["half too large", "ours"]


def test_a_difference_beyond_its_limit_fails() -> None:
    report = wrong([f"{FIRST}: small, error < 0.1", f"{SECOND}: small, error < 0.1, rho < 1e9"])
    assert [finding.first.name for finding in report.findings] == [FIRST]


def test_a_difference_that_no_longer_occurs_is_reported() -> None:
    report = wrong(["lm_head: none", f"{FIRST}: yes"])
    assert [bool(checks) for checks in report.known.values()] == [False, True]
    assert not report.passed


def test_why_a_known_difference_is_nowhere_is_said() -> None:
    """It exceeds its limit, was not checked, was covered before, or no longer occurs."""
    lines = [
        "decoder.*: small, error < 0.001",
        f"{FIRST}: ours",
        "*fc2: ours too",
        "*.9.fc1: nowhere",
        "lm_head: none, error < 1",
    ]
    report = wrong(lines)
    states = [
        "Exceeds its limit",
        "Known",
        "Covered by an earlier line",
        "Not checked (no such tensor is shown)",
        "No longer occurs",
    ]
    assert [known["state"] for known in as_dict(report)["known"]] == states
    expected = [f"{state}: {line}" for state, line in zip(states, lines, strict=True) if state != "Known"]
    shown_known = f"Known: ours, error 0.5: {FIRST}, encoder.layers.0.tokens.output"
    for text in (as_text(report), as_junit(report).replace("&lt;", "<"), as_html(report).replace("&lt;", "<")):
        assert all(line in text for line in [*expected, shown_known])
        assert text.count("No longer occurs") == 1


@pytest.mark.parametrize("limits", ["", ", error < 1e30, rho < 1e30"])
@pytest.mark.parametrize("name", ["encoder.layers.0.tokens.fc2", "decoder.layers.1.self_attn.scores"])
@pytest.mark.parametrize("how", ["nan", "inf", "shape", "mask"])
def test_a_known_difference_is_one_of_numbers(name: str, how: str, limits: str) -> None:
    """NaN, another shape and a wrong mask are no known difference, nor what follows from them."""
    changed = TENSORS[name].copy()
    if how == "shape":
        changed = changed[..., :3]
    elif how == "mask":
        if not name.endswith("scores"):
            return
        changed[changed < -1e3] = 0
    else:
        changed[0, 0, 0] = float(how)
    report = verify(MODEL, TENSORS | {name: changed}, INPUTS, "float32", f"*: all of it{limits}")
    assert [finding.first.name for finding in report.findings] == [name]
    assert as_dict(report)["known"][0]["state"].startswith("Does not cover this (")


def shifted_embeddings(size: float) -> dict[str, np.ndarray]:
    """Return the tensors of a model whose embeddings have errors of a size, of which later ones follow."""
    model, rng = random_model(CONFIG, 0, "numpy", "float32"), np.random.default_rng(1)

    def shift(_: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x + np.float32(size) * rng.uniform(-1, 1, x.shape), dtype=np.float32)

    with listen(shift, "encoder.embeddings"):
        return {name: np.array(x) for name, x in from_backend(model)(INPUTS).items()}


@pytest.mark.parametrize("limit", ["error < 0.001", "rho < 10000", "rho < 10000, error < 0.001"])
def test_a_limit_widens_what_follows_from_a_hidden_tensor(limit: str) -> None:
    states = ("encoder.layer_norm", "decoder.layer_norm", "lm_head")
    tensors = shifted_embeddings(1e-3)
    line = f"encoder.embeddings: shifted, {limit}"

    def check(shown: Collection[str], factor: float = 1.0) -> Report:
        found = {name: tensors[name] for name in shown}
        return verify(MODEL, found | {"lm_head": tensors["lm_head"] * factor}, INPUTS, "float32", [line])

    (finding,) = verify(MODEL, {name: tensors[name] for name in states}, INPUTS, "float32").findings
    assert finding.first.name == "encoder.layer_norm"
    report = check(states)
    assert report.passed
    assert [check.verdict for check in report.table] == ["pass"] * 3
    assert f"Assumed (not shown): {line}" in as_text(report).splitlines()
    assert as_dict(report)["known"][0]["assumed"] == ["encoder.embeddings"]
    # What has its inputs shown is checked as without the line.
    assert [finding.first.name for finding in check(states, 1 + 1e-5).findings] == ["lm_head"]
    visible = set(tensors) - {"encoder.embeddings"}
    with_line, without = check(visible), verify(MODEL, {n: tensors[n] for n in visible}, INPUTS, "float32")
    later = [name for name in visible if not name.startswith(("encoder.embed", "encoder.layers.0.tokens.input"))]
    rho = [{check.name: check.rho for check in report.table} for report in (with_line, without)]
    assert all(rho[0][name] == rho[1][name] for name in later)


def test_without_a_limit_a_hidden_difference_is_not_assumed() -> None:
    report = verify(MODEL, {"lm_head": TENSORS["lm_head"]}, INPUTS, "float32", ["*.tokens.fc1: x", "*.fc2: x, rho < 9"])
    assert [known["state"] for known in as_dict(report)["known"]] == [
        "Not checked (no such tensor is shown)",
        "Assumed (not shown)",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("length", [16, 4096])
def test_the_shipped_limits_hold_for_transformers(transformers: ModuleType, dtype: str, length: int) -> None:
    """Its positions in the dtype of the model, to the end of long inputs, and no others."""
    import torch
    from transformers.models.pegasus_x.modeling_pegasus_x import PegasusXSinusoidalPositionalEmbedding

    known, arithmetic = read_known("transformers")[0], get_arithmetic(dtype)
    rng, right = np.random.default_rng(0), sinusoidal_positions(0, length, 256)
    for size in (0.1, 4.0):  # of the tokens: rho is large where they are small, and the error where they are large
        tokens = torch.tensor(size * rng.standard_normal((1, length, 256))).to(getattr(torch, dtype))
        theirs = (tokens + PegasusXSinusoidalPositionalEmbedding(256)(tokens)).double().numpy()
        exact = tokens.double().numpy() + right
        variance = position_errors(arithmetic, right, exact, length - 1).variance
        squares = (theirs - exact) ** 2
        rho, error = np.sqrt(squares.sum(-1) / variance.sum(-1)).max(), squares.max() ** 0.5
        check = SimpleNamespace(rho=rho, error=error, largest_error=error, note="")
        assert known.covers("encoder.embeddings", check)  # type: ignore[arg-type]


def test_a_limit_is_one_of_the_largest_error() -> None:
    """Relative to its rounding error, another element may be worse."""
    name = "encoder.layers.0.tokens.activation"
    row = (changed := TENSORS[name].copy())[0, 0]
    row[np.abs(row).argmin()] += np.float32(1e-3)
    row[np.abs(row).argmax()] += np.float32(2e-3)
    report = verify(MODEL, TENSORS | {name: changed}, INPUTS, "float32", known=f"{name}: two numbers, error < 1.5e-3")
    (check,) = (check for check in report.table if check.name == name)
    assert check.verdict == "fail"
    assert check.error <= check.largest_error == pytest.approx(2e-3, rel=0.01)


@pytest.mark.slow
@given(st.data())
def test_patterns_are_refused_only_if_no_name_can_match(data: st.DataObject) -> None:
    point = data.draw(st.sampled_from(sorted(TRACE_POINTS)))
    name = re.sub(r"\{\w\}", lambda _: str(data.draw(st.integers(0, 200))), point)
    parts = [data.draw(st.sampled_from([c, "?", "*", f"[{c}]", f"[!{'x' if c != 'x' else 'y'}]"])) for c in name]
    pattern = "".join(parts)
    assert fnmatchcase(name, pattern)
    assert KnownDifference(pattern[:200], "r").matches(name) or len(pattern) > 200
    at = data.draw(st.integers(0, len(name)))
    other = name[:at] + data.draw(st.sampled_from("a.5_")) + name[at:]
    assert can_match(other, point) == (general(other) == point)


@pytest.mark.parametrize(
    "pattern",
    ["encoder.layers.[1-3].*", "encoder.layers.1?.*", "encoder.*.11.tokens.fc1", "*.1.fc1", "*.local.12?.scores"],
)
def test_patterns_of_numbers_are_accepted(pattern: str) -> None:
    assert parse_known(f"{pattern}: x").pattern == pattern


@pytest.mark.parametrize(
    "known", [KnownDifference("*", "all"), "*: all", Path("known.txt")], ids=["one", "line", "file"]
)
def test_a_single_difference_needs_no_list(known: Known, tmp_path: Path) -> None:
    if isinstance(known, Path):
        known = tmp_path / known
        known.write_text("*: all", encoding="utf-8")
    assert wrong(known).passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("*fc1", "r", (("err", 1.0),)), "'*fc1': a limit of 'err': choose one of rho, error, end_to_end"),
        (("*fc1", "r", (("error", float("nan")),)), "error < nan: a limit must be above 0 and finite"),
        (("*fc1", "r", 3), "'*fc1': not readable: expected PATTERN: REASON"),
        ((3, "r"), "known difference 3: not readable"),
        (("*fc1", " "), "'*fc1': has no reason"),
        (("*fc7", "r"), "'*fc7': matches no trace point"),
    ],
    ids=str,
)
def test_wrong_objects_are_errors(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        KnownDifference(*arguments)


@pytest.mark.slow
@given(
    st.sampled_from(sorted(TRACE_POINTS)),
    st.text(st.characters(blacklist_categories=("C", "Z"), blacklist_characters=",<>:"), min_size=1, max_size=20),
    st.lists(
        st.tuples(st.sampled_from(["rho", "error", "end_to_end"]), st.floats(1e-30, 1e30)),
        max_size=3,
    ),
)
def test_lines_are_parsed(point: str, reason: str, limits: list[tuple[str, float]]) -> None:
    pattern = point.replace("{i}", "*").replace("{n}", "*")
    line = f" {pattern} : {reason} " + "".join(f", {what} < {limit!r}" for what, limit in limits)
    assert parse_known(line) == KnownDifference(pattern, reason, tuple(limits))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_shipped_lists_can_be_read(name: str) -> None:
    assert read_known(name)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (["lm_head"], "known difference 'lm_head': expected PATTERN: REASON"),
        (["lm_head: "], "expected PATTERN: REASON"),
        ([3], "known difference 3: expected PATTERN"),
        (3, "known=3: pass a file, or a list of lines"),
        (["lm_heads: x"], "'lm_heads': matches no trace point"),
        (["encoder.layers.0.token.fc1: x"], "'encoder.layers.0.token.fc1': matches no trace point"),
        (["encoder.layers.[!0-9].tokens.fc1: x"], "matches no trace point"),
        (["*" * 2**19 + ": x"], "matches no trace point"),
        (["lm_head: x, eror < 3"], "'lm_head': a limit of 'eror': choose one of rho, error, end_to_end"),
        (["lm_head: x, error < nan"], "'lm_head': error < nan: a limit must be above 0 and finite"),
        (["lm_head: x, error < -1"], "error < -1: a limit must be above 0 and finite"),
        (["lm_head: x, error < inf"], "error < inf: a limit must be above 0 and finite"),
        (["lm_head: x, error < 0, rho < 5"], "error < 0: a limit must be above 0 and finite"),
        (["lm_head: x; error < 2e-3"], "a reason cannot contain < or >; limits end the line, as in"),
        (["lm_head: x, error <= 1e-9"], "a reason cannot contain < or >; limits end the line"),
        (["lm_head: x, error < 1e-4 # note"], "a reason cannot contain < or >; limits end the line"),
        ("lm_head: x, error > 1", "a reason cannot contain < or >; limits end the line"),
        (["lm_head: x, error < small"], "known difference 'lm_head: x, error < small': not readable"),
        ("nowhere.txt", "nowhere.txt: cannot be read: No such file or directory"),
    ],
    ids=str,
)
def test_wrong_lines_are_errors(known: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        wrong(known)


def test_a_file_may_have_comments(tmp_path: Path) -> None:
    file = tmp_path / "known.txt"
    file.write_text(f"# two\n\n{FIRST}: a\n  {SECOND}: b, with a comma, error < 1  \n", encoding="utf-8")
    assert wrong(file).passed
    assert [difference.reason for difference in read_known(file)] == ["a", "b, with a comma"]
