"""`pegasusx-ref verify`: output, reports, messages and exit codes."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pegasusx_ref import DEMO_CHECKPOINT, PegasusXForConditionalGeneration
from pegasusx_ref.cli import main
from pegasusx_ref.verification import Candidate, from_backend

pytestmark = pytest.mark.slow


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["verify", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_verify_passes_a_backend_of_ours_on_a_text(prose: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(prose[:800], encoding="utf-8")
    result = run(file, "--against", "numpy", "--no-progress")
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.fullmatch(r"\d+ tensors in float32: \d+ pass(, \d+ blind)?\n", result.stdout)


def test_verify_prints_the_first_wrong_tensor(transformers: ModuleType) -> None:
    """transformers computes positions in the model's dtype, which is right in float64 and wrong in float32."""
    assert run("--dtype", "float64", "--no-progress").exit_code == 0
    result = run("--dtype", "float32", "--no-progress")
    assert result.exit_code == 1
    first, diagnosis, _, *rows, _ = result.stdout.splitlines()
    assert first.startswith("First wrong: encoder.embeddings (add_positions) at [0, ")
    assert diagnosis == "Likely bug: positions are computed in low precision"
    assert [row.split()[0] for row in rows] == ["encoder.embeddings", "decoder.embeddings"]
    report = json.loads(run("--json", "--no-progress").stdout)
    assert (report["passed"], report["first_failure"]) == (False, "encoder.embeddings")
    assert len(report["table"]) > 200


def test_verify_lists_all_tensors_on_request() -> None:
    result = run("--against", "numpy", "--all", "--tokens", "40", "--no-progress")
    header, *rows, count = result.stdout.splitlines()
    assert header.split() == ["tensor", "operation", "rho", "error", "sigma", "bound", "verdict"]
    assert count.startswith(f"{len(rows)} tensors in float32")


def _wrong(model: Any) -> Candidate:
    """Return a candidate of one of our backends with a wrong tensor."""

    def tensors(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = dict(from_backend(model)(inputs))
        found["encoder.layers.0.tokens.fc1"] = found["encoder.layers.0.tokens.fc1"] * 1.01
        return found

    return tensors


@pytest.mark.parametrize("wrong", [True, False])
def test_verify_writes_reports(
    wrong: bool, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong:
        monkeypatch.setattr("pegasusx_ref.cli.candidates.from_backend", _wrong)
    page, xml = tmp_path / "report.html", tmp_path / "report.xml"
    page.write_text("of another day", encoding="utf-8")
    arguments = ("--model", model_folder, "--against", "numpy", "--tokens", 40, "--no-progress", "--json")
    alone = run(*arguments)
    result = run(*arguments, "--html", page, "--junit", xml)
    assert (result.exit_code, result.stdout, result.stderr) == (int(wrong), alone.stdout, "")
    html, suites = page.read_text(encoding="utf-8"), ET.fromstring(xml.read_text(encoding="utf-8"))
    assert html.startswith("<!DOCTYPE html>")
    assert f"<h1>numpy in float32, {model_folder.name}</h1>" in html
    assert ("First wrong: <code>encoder.layers.0.tokens.fc1</code>" in html) == wrong
    assert int(suites.get("tests", "")) == len(json.loads(result.stdout)["table"])
    assert (suites.get("failures") != "0") == wrong


def test_verify_checks_output_files_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegasusx_ref.cli.verify.verify", lambda *_: pytest.fail("it ran"))
    good = tmp_path / "good.html"
    for arguments, message in (
        (
            ("--html", tmp_path),
            f"--html {tmp_path}: is not a regular file: give the path of a file, new or to be replaced",
        ),
        (
            ("--html", good, "--junit", "nowhere/x"),
            "--junit nowhere/x: the folder nowhere does not exist",
        ),
        (("--html", good, "--junit", good), f"--html {good} and --junit {good} are the same file: name another file"),
    ):
        result = run("--against", "numpy", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"Error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_verify_keeps_an_older_report_if_it_cannot_run(tmp_path: Path) -> None:
    old = tmp_path / "old.html"
    old.write_text("old", encoding="utf-8")
    assert run("--against", "abacus", "--html", old, "--junit", tmp_path / "new.xml").exit_code == 2
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--model", "nowhere"], "nowhere"),
        (["--against", "abacus"], "backend 'abacus' is not installed"),
        (["--against", "numpy", "--dtype", "float16"], "float16"),
        (["--dtype", "int8"], "'int8' is not one of 'float64', 'float32', 'tf32', 'bfloat16', 'float16'"),
    ],
    ids=str,
)
def test_verify_errors_are_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments, "--no-progress")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]


# --- dumps -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Write the tensors of the demo model in float32, and its inputs."""
    model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT)
    inputs = {"input_ids": np.array([[300, 400, 500, 1]]), "decoder_input_ids": np.array([[0, 600]])}
    tensors = {name.replace("lm_head", "logits"): tensor for name, tensor in from_backend(model)(inputs).items()}
    np.savez(tmp_path / "dump.npz", **tensors, **inputs)  # type: ignore[arg-type]
    return tmp_path / "dump.npz"


def test_verify_checks_a_dump(dump: Path) -> None:
    result = run("--dump", dump)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "Unknown names: logits"
    (dump.parent / "map.toml").write_text('lm_head = "logits"')
    result = run("--dump", dump, "--map", dump.parent / "map.toml", "--all")
    assert result.exit_code == 0
    assert "lm_head" in result.stdout
    assert run("--dump", dump, "--dtype", "tf32").exit_code == 0
    assert run("--dump", dump, "--dtype", "float64").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dump", "none.npz"), "none.npz: no such file"),
        (("--dump", "{dump}", "--map", "none.toml"), "none.toml: cannot be read: No such file or directory"),
        (("{dump}", "--dump", "{dump}"), "contains the ids of its run and cannot be combined with"),
        (("--map", "{dump}"), "maps the names of a dump: add --dump FILE"),
        (("--dump", "{dump}", "--seed", "3"), "cannot be combined with --seed"),
        (("--dump", "{dump}", "--against", "torch"), "cannot be combined with --against"),
        (("{dump}", "--tokens", "5"), "--tokens is for random input and cannot be combined with"),
        (("--dtype", "tf32"), "--dtype tf32 is for a --dump: transformers does not compute in tf32 here"),
    ],
)
def test_wrong_combinations_of_options_are_one_line(dump: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(*(argument.format(dump=dump) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_dump_without_ids_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "dump.npz", lm_head=np.ones((1, 2, 3)))
    result = run("--dump", tmp_path / "dump.npz")
    assert result.exit_code == 2
    assert "input_ids is missing: a run takes input_ids and decoder_input_ids, and a dump must contain" in result.stderr
