"""Standard streams of the command line: full, closed and broken; results and messages never mix."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is needed: Linux's /dev/full"),
]

TEXT = "A small library that reads and writes files.\n"
FULL = "Error: standard output: cannot be written: No space left on device\n"
CLOSED = "Error: standard output: cannot be written: Bad file descriptor\n"
CHECK = "verify --against numpy --tokens 20 --target-tokens 2 --no-progress"
TRACE = "trace text.txt --max-new-tokens 3 --model"


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a shell; `pegasusx-ref` in it is this interpreter's."""
    (folder / "text.txt").write_text(TEXT)
    prelude = f'pegasusx-ref() {{ "{sys.executable}" -m pegasusx_ref "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", prelude + command.replace("MODEL", "$MODEL")],
        cwd=folder,
        env=os.environ | environment | {"MODEL": str(Path(__file__).parents[1] / "pegasusx_ref" / "demo")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "code", "stdout", "stderr"),
    [
        ("explain --json > /dev/full", 2, "", FULL),
        ("--help > /dev/full", 2, "", FULL),
        ("picture --help > /dev/full", 2, "", FULL),
        ("--version > /dev/full", 2, "", FULL),
        (f"{CHECK} > /dev/full", 2, "", FULL),
        ("explain --cost >&-", 2, "", CLOSED),
        ("--version >&-", 2, "", CLOSED),
        ("bench --list 1< /dev/null", 2, "", CLOSED),
        ("picture index-map --out x.svg >&-", 0, "", ""),  # it has no results on standard output
        ("summarize --model MODEL - <&-", 2, "", "Error: standard input: Bad file descriptor\n"),
        ("summarize missing.txt 2>&-", 2, "", ""),
        ("summarize missing.txt 2> /dev/full", 2, "", ""),
        ("--version 2>&- <&-", 0, "pegasusx-ref, version 0.1.0\n", ""),
        ("--version <&- >&- 2>&-", 2, "", ""),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value and value[:5] != "Error" else "",
)
def test_streams_that_fail(command: str, code: int, stdout: str, stderr: str, tmp_path: Path) -> None:
    done = shell(f"pegasusx-ref {command}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, stdout, stderr)


@pytest.mark.parametrize("stderr", ["2>&-", "2> /dev/full", "2> /dev/null"])
def test_messages_never_reach_the_results(stderr: str, tmp_path: Path) -> None:
    done = shell(f"pegasusx-ref summarize text.txt --max-new-tokens 3 --json {stderr}", tmp_path)  # notes, and figures
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["document"] == "text.txt"


@pytest.mark.parametrize(
    "command", ["--help", "explain --json 2>&-", f"{TRACE} MODEL 2>&1", f"{TRACE} MODEL --json"], ids=ascii
)
def test_a_broken_pipe_is_silent(command: str, tmp_path: Path) -> None:
    done = shell(f"pegasusx-ref {command} | true\nexit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


def test_an_encoding_without_a_character_is_no_error(tmp_path: Path) -> None:
    done = shell("pegasusx-ref bench --list", tmp_path, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "time \\u2264 0.4 torch" in done.stdout
    done = shell("pegasusx-ref explain encoder.embeddings --config tiny --json", tmp_path, PYTHONIOENCODING="ascii")
    assert "\\u" in done.stdout
    assert json.loads(done.stdout)["place"] == "encoder.embeddings"


def test_other_files_do_not_get_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    """What a library prints to standard output would otherwise be written into a file of ours, or of the model."""
    command = "trace text.txt --model MODEL --max-new-tokens 3 --save trace.safetensors"
    assert shell(f"pegasusx-ref {command}", tmp_path).returncode == 0
    written = (tmp_path / "trace.safetensors").read_bytes()
    assert shell(f"pegasusx-ref {command} <&- >&- 2>&-", tmp_path).returncode == 2
    assert (tmp_path / "trace.safetensors").read_bytes() == written


def test_the_installed_command_is_the_module() -> None:
    (script,) = (script for script in entry_points(group="console_scripts") if script.name == "pegasusx-ref")
    assert script.value == "pegasusx_ref.__main__:main"
