"""`pegasusx-ref verify`: what it lists, and its exit codes."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from pegasusx_ref.cli import main


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


def test_verify_names_what_is_wrong_first(transformers: ModuleType) -> None:
    """transformers computes positions in the model's dtype: in float64 that is right, in float32 it is not."""
    assert run("--dtype", "float64", "--no-progress").exit_code == 0
    result = run("--dtype", "float32", "--no-progress")
    assert result.exit_code == 1
    first, diagnosis, _, *rows, _ = result.stdout.splitlines()
    assert first.startswith("First wrong: encoder.embeddings (add_positions) at [0, ")
    assert diagnosis == "Looks like: positions are computed in low precision"
    assert [row.split()[0] for row in rows] == ["encoder.embeddings", "decoder.embeddings"]
    report = json.loads(run("--json", "--no-progress").stdout)
    assert (report["passed"], report["first_failure"]) == (False, "encoder.embeddings")
    assert len(report["table"]) > 200


def test_verify_lists_everything_if_asked() -> None:
    result = run("--against", "numpy", "--all", "--tokens", "40", "--no-progress")
    header, *rows, count = result.stdout.splitlines()
    assert header.split() == ["tensor", "operation", "rho", "error", "sigma", "bound", "verdict"]
    assert count.startswith(f"{len(rows)} tensors in float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--model", "nowhere"], "nowhere"),
        (["--against", "abacus"], "backend 'abacus' is not installed"),
        (["--against", "numpy", "--dtype", "float16"], "float16"),
        (["--dtype", "int8"], "'int8' is not one of 'float64', 'float32', 'bfloat16', 'float16'"),
    ],
    ids=str,
)
def test_verify_says_in_a_line_what_it_cannot(arguments: list[str], message: str) -> None:
    result = run(*arguments, "--no-progress")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
