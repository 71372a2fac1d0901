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
    counts, shown, notes = result.stdout.splitlines()
    assert re.fullmatch(r"(\d+) tensors in float32: \d+ pass(, \d+ blind)?", counts)
    assert re.fullmatch(r"Shown: (\d+) of \1 tensors of the run", shown)
    assert notes.startswith("These inputs cannot show: faults of the source's mask (no padding); ")


def test_verify_prints_the_first_wrong_tensor(transformers: ModuleType) -> None:
    """transformers computes positions in the model's dtype, which is right in float64 and wrong in float32."""
    assert run("--dtype", "float64", "--no-progress").exit_code == 0
    result = run("--dtype", "float32", "--no-progress")
    assert result.exit_code == 1
    first, diagnosis, _, *rows, _, _, _ = result.stdout.splitlines()
    assert first.startswith("First wrong: encoder.embeddings (add_positions) at [0, ")
    assert diagnosis == "Likely bug: positions are computed in low precision"
    assert [row.split()[0] for row in rows] == ["encoder.embeddings", "decoder.embeddings"]
    report = json.loads(run("--json", "--no-progress").stdout)
    assert (report["passed"], report["first_failure"]) == (False, "encoder.embeddings")
    assert len(report["table"]) > 200


def test_verify_lists_all_tensors_on_request() -> None:
    result = run("--against", "numpy", "--all", "--tokens", "40", "--no-progress")
    header, *rows, count, _, _ = result.stdout.splitlines()
    assert header.split() == ["tensor", "operation", "rho", "error", "sigma", "bound", "verdict"]
    assert count.startswith(f"{len(rows)} tensors in float32")


def _wrong(model: Any, layerwise: bool) -> Candidate:
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
    assert ('<p class="banner fail">' in html) == wrong
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
        (
            ["--dtype", "int8"],
            "--dtype int8 is not known: pass float64, float32, bfloat16, float16, tf32, or another name that --help",
        ),
        (["--dtype", "float31"], "--dtype float31 is not known: pass float32, or another name that --help lists"),
        (["--dtype", "BFloat16"], "--dtype BFloat16 is not known: pass bfloat16, or"),
        (
            ["--dtype", "float32, sum=float16"],
            "--dtype 'float32, sum=float16': 'sum=float16' is not known: pass softmax=, parameters= or ",
        ),
        (["--known", "nowhere.txt"], "nowhere.txt: cannot be read: No such file or directory"),
        (["--layers", "encoder.99"], "layers: 'encoder.99': the model has the encoder layers 0 to 2"),
        (["--layers", "encoder.1-0"], "layers: 'encoder.1-0': the range is reversed: write encoder.0-1"),
        (["--layers", "middle"], "layers: 'middle': expected a name such as encoder.0 or decoder.2-4"),
        (["--rows", "0,x"], "--rows 0,x: expected numbers of batch rows, such as 0,2-4"),
        (["--rows", "2-0"], "--rows 2-0: expected numbers of batch rows, such as 0,2-4"),
        (["--against", "numpy", "--rows", "1"], "rows=[1]: pass a list of batch rows, 0 to 0"),
        (["--suggest-inputs", "ids.json"], "--suggest-inputs ids.json: the name must end in .safetensors or .npz"),
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
    assert {"Missing: lm_head", "Unknown names: logits"} <= set(result.stdout.splitlines())
    result = run("--dump", dump, "--strict", "--junit", dump.parent / "x.xml", "--html", dump.parent / "x.html")
    assert result.exit_code == 1
    problem = "--strict: 1 tensor is missing, 1 name is unknown"
    assert f"Failed: {problem}" in result.stdout.splitlines()
    assert json.loads(run("--dump", dump, "--strict", "--json").stdout)["passed"] is False
    suites = ET.fromstring((dump.parent / "x.xml").read_text(encoding="utf-8"))
    assert (suites.get("failures"), len(suites.findall(".//failure"))) == ("1", 1)
    page = (dump.parent / "x.html").read_text(encoding="utf-8")
    assert (problem in page, "<title>Failed" in page, "first failure" in page) == (True, True, False)
    (dump.parent / "map.toml").write_text('lm_head = "logits"')
    result = run("--dump", dump, "--map", dump.parent / "map.toml", "--all", "--strict")
    assert result.exit_code == 0
    assert "lm_head" in result.stdout
    assert run("--dump", dump, "--dtype", "tf32").exit_code == 0
    assert run("--against", "numpy", "--dtype", "F32_F32_F32", "--tokens", 5, "--no-progress").exit_code == 0
    assert run("--dump", dump, "--dtype", "float64").exit_code == 1
    assert run("--dump", dump, "--inputs", dump).exit_code == 0  # the same ids
    np.savez(dump.parent / "other.npz", input_ids=np.array([[300, 400, 1]]), decoder_input_ids=np.array([[0, 600]]))
    result = run("--dump", dump, "--inputs", dump.parent / "other.npz")
    assert (result.exit_code, "other.npz hold different input_ids: keep one" in result.stderr) == (2, True)
    result = run("--dump", dump, "--dtype", "fp32")
    assert "--dtype fp32 is not known: pass float32, or another" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dump", "none.npz"), "none.npz: no such file"),
        (("--dump", "{dump}", "--map", "none.toml"), "none.toml: no such file; the maps that come with this package"),
        (("{dump}", "--dump", "{dump}"), "holds the tensors of a run and cannot be combined with"),
        (
            ("--suggest-inputs", "x.npz", "--strict", "--dump", "{dump}"),
            "checks nothing and cannot be combined with --dump",
        ),
        (("--suggest-inputs", "x.npz", "--tokens", "5"), "x.npz checks nothing and cannot be combined with --tokens"),
        (("--map", "{dump}"), "maps the names of a dump: add --dump FILE"),
        (("--dump", "{dump}", "--seed", "3"), "cannot be combined with --seed"),
        (("--dump", "{dump}", "--against", "torch"), "cannot be combined with --against"),
        (("{dump}", "--tokens", "5"), "--tokens is for random input and cannot be combined with"),
        (("--dtype", "tf32"), "--dtype tf32 is for a --dump: transformers computes in float64, float32, "),
    ],
)
def test_wrong_combinations_of_options_are_one_line(dump: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(*(argument.format(dump=dump) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_dump_without_ids_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "dump.npz", lm_head=np.ones((1, 2, 3)))
    np.savez(tmp_path / "ids.npz", input_ids=np.ones((1, 2), int))
    result = run("--dump", tmp_path / "dump.npz")
    assert result.exit_code == 2
    assert (
        "dump.npz: input_ids is missing: add it to the dump, or pass a file of ids and masks as --in" in result.stderr
    )
    for more in (["--dump", tmp_path / "dump.npz"], ["--against", "numpy"]):
        result = run("--inputs", tmp_path / "ids.npz", *more, "--no-progress")
        assert (result.exit_code, result.stderr) == (
            2,
            f"Error: {tmp_path / 'ids.npz'}: decoder_input_ids is missing: add it\n",
        )


def test_ids_of_a_dump_may_be_in_a_file_of_their_own(dump: Path, tmp_path: Path) -> None:
    with np.load(dump) as file:
        tensors = dict(file)
    ids = {name: tensors.pop(name) for name in ("input_ids", "decoder_input_ids")}
    np.savez(tmp_path / "bare.npz", **tensors)
    np.savez(tmp_path / "ids.npz", **ids)
    result = run("--dump", tmp_path / "bare.npz", "--inputs", tmp_path / "ids.npz")
    assert (result.exit_code, result.stdout) == (0, run("--dump", dump).stdout)


def test_a_missing_transformers_names_another_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    result = run("--tokens", 4, "--no-progress")
    assert result.exit_code == 2
    assert "or check our own backend with --against numpy, which needs neither" in result.stderr


# --- findings, known differences, inputs ------------------------------------------------------------------------------


def test_known_differences_do_not_fail(transformers: ModuleType, tmp_path: Path) -> None:
    result = run("--dtype", "float32", "--no-progress", "--known", "transformers")
    assert result.exit_code == 0
    assert "Known: positions are computed in the model's dtype" in result.stdout
    file = tmp_path / "known.txt"
    file.write_text("# mine\nencoder.embeddings: positions, error < 1e-30\nlm_head: another head\n", encoding="utf-8")
    result = run("--dtype", "float32", "--no-progress", "--known", file)
    assert result.exit_code == 1
    assert "First wrong: encoder.embeddings" in result.stdout
    assert "No longer occurs: lm_head: another head" in result.stdout


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_suggested_inputs_can_show_every_fault(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"inputs.{suffix}"
    result = run("--suggest-inputs", file)
    assert result.exit_code == 0
    wrote, how = result.stdout.splitlines()
    assert wrote == f"Wrote {file}: 3 texts of up to 1025 source and 12 target tokens, with masks"
    assert how.endswith(f": pegasusx-ref verify --dump FILE --inputs {file}")
    result = run(
        "--inputs", file, "--against", "numpy", "--no-progress", "--layers", "encoder.1, decoder.0", "--rows", "1-2"
    )
    assert result.exit_code == 0
    assert "cannot show" not in result.stdout
    assert re.search(r"^Shown: (\d+) of \1 tensors of the run$", result.stdout, re.MULTILINE)
