"""The command that fine-tunes: its outputs, its errors, signals, and two processes."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli_files import error_line, run
from test_finetuning import TEXTS, write_jsonl

import pegasusx_ref.__main__ as entry
from pegasusx_ref import PegasusXForConditionalGeneration
from pegasusx_ref.finetuning import Finetuning
from pegasusx_ref.finetuning.log import read_log

pytestmark = pytest.mark.unwatched

SHORT = ("--steps", 4, "--batch-size", 2, "--eval-every", 2, "--eval-summaries", 0, "--max-source-tokens", 30)
ARGUMENTS = ("finetune", "train.jsonl", "--eval", "dev.jsonl", "--out", "run", "--model", "model", *SHORT)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with pairs and a model, which every command starts in."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("train.jsonl"), TEXTS[:20])
    write_jsonl(Path("dev.jsonl"), TEXTS[20:])
    shutil.copytree(model_folder, "model")


def losses(folder: str) -> list[tuple[float, ...]]:
    return [(row["loss"], row["learning_rate"], row.get("eval_loss", 0)) for row in read_log(Path(folder) / "log.csv")]


def test_it_prints_the_checkpoints_and_progress() -> None:
    result = run(*ARGUMENTS, "--plot", "curves.svg")
    assert (result.exit_code, result.stdout) == (0, "run/best\nrun/last\n")
    notes, lines = result.stderr.splitlines()[:2], result.stderr.splitlines()[2:]
    assert [note.split(":")[1] for note in notes] == [" dev.jsonl", " train.jsonl"]
    assert lines[0].startswith("20 pairs, 2 to evaluate, 4 steps, ")
    assert [line.split(":")[0] for line in lines[1:]] == ["step 2", "step 4"]
    assert "</svg>" in Path("curves.svg").read_text()
    Path("text.txt").write_text("A small library.")
    assert run("summarize", "text.txt", "--model", "run/best", "--max-new-tokens", 3).exit_code == 0
    result = run(*ARGUMENTS, "--resume", "--no-progress")
    assert (result.exit_code, result.stdout) == (0, "run/best\nrun/last\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_run(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Finetuning._advance

    def interrupted(self: Finetuning) -> dict[str, float]:
        if self.step == 2:
            signal.raise_signal(number)
            signal.raise_signal(number)  # at once, as timeout(1) does
        return advance(self)

    monkeypatch.setattr(entry, "received", [])
    before = signal.signal(number, entry.unwind)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Finetuning, "_advance", interrupted)
            result = run(*ARGUMENTS)
        assert signal.getsignal(number) == entry.unwind
    finally:
        signal.signal(number, before)
    assert (result.exit_code, result.stdout) == (128 + number, "")
    saved = "Note: step 3 of 4 is saved in run; the same command with --resume continues"
    assert result.stderr.splitlines()[-1] == saved
    assert run(*ARGUMENTS, "--resume").exit_code == 0
    assert run(*ARGUMENTS, "--out", "whole").exit_code == 0
    assert losses("run") == losses("whole")


def without_tokenizer() -> None:
    Path("model/spiece.model").unlink()


def quantized() -> None:
    model = PegasusXForConditionalGeneration.from_pretrained("model", quantization="nf4")
    model.save_pretrained("model")


def other_files() -> None:
    Path("run").mkdir()
    Path("run/thesis.tex").touch()


def saved_run() -> None:
    run(*ARGUMENTS)


def not_json() -> None:
    Path("train.jsonl").write_text("{document\n" * 3)


def csv_of_other_columns() -> None:
    with Path("train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "title"), ("a", "b")])


WRONG: list[tuple[Callable[[], object], tuple[object, ...], str]] = [
    (Path("dev.jsonl").unlink, (), "dev.jsonl: cannot be read: No such file or directory"),
    (Path("train.jsonl").touch, ("--eval", "text.txt"), "text.txt: extension '.txt' is not one of .jsonl, .csv, .parq"),
    (
        lambda: Path("dev.jsonl").write_text("\n"),
        (),
        "dev.jsonl: no row has a text in the columns 'document' and 'summ",
    ),
    (csv_of_other_columns, ("--eval", "train.csv"), "row 2: no column 'document' among 'text', 'title'): name the col"),
    (
        lambda: Path("a.csv").write_text('document,summary\na,"b\n'),
        ("--eval", "a.csv"),
        "a.csv: not a .csv file of pairs",
    ),
    (without_tokenizer, (), "model: no tokenizer: copy spiece.model or tokenizer.json from the original checkpoint"),
    (quantized, (), "quantized weights do not train: load the model without quantization"),
    (other_files, (), "run: is not empty: resume the run in it (--resume), or name a new folder"),
    (
        saved_run,
        ("--resume", "--seed", 3),
        "run: its run has seed=0, not 3: resume it with its own settings, or name an",
    ),
    (
        lambda: None,
        ("--batch-size", 21),
        "20 pairs do not fill a step of 21 (batch size x accumulated batches x proces",
    ),
    (lambda: None, ("--epochs", 2), "steps=4 and epochs=2 exclude each other: pass one of them"),
    (lambda: None, ("--plot", "curves.txt"), "--plot curves.txt: extension '.txt' is not an image format"),
    (lambda: None, ("--device", "cuda:7"), "backend 'torch' has no device 'cuda:7'"),
    (lambda: None, ("--out", "train.jsonl"), "train.jsonl: Not a directory"),
    (lambda: None, ("--dropout", 1.5), "Invalid value for '--dropout'"),
    (not_json, (), "line 1 column 2 (char 1))): write pairs into it"),
]


@pytest.mark.parametrize(("prepare", "options", "said"), WRONG, ids=[said[:40] for _, _, said in WRONG])
def test_wrong_inputs_are_one_line(prepare: Callable[[], object], options: tuple[object, ...], said: str) -> None:
    prepare()
    assert said in error_line(*ARGUMENTS, "--no-progress", *options)


@pytest.mark.parametrize(
    ("missing", "options", "extra"),
    [
        ("rouge_score.rouge_scorer", ("--eval-summaries", 2), "pegasusx-ref[finetune]"),
        ("torch.utils.tensorboard", ("--tensorboard",), "pip install tensorboard"),
    ],
)
def test_missing_packages_are_named(
    missing: str, options: tuple[object, ...], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert extra in error_line(*ARGUMENTS, "--no-progress", *options)
    assert not Path("run").exists()  # so that the next try does not find a run


def test_resuming_nothing_begins_a_run_and_resuming_a_complete_one_says_so() -> None:
    assert "Note: run: there is no run to resume: a new one begins" in run(*ARGUMENTS, "--resume").stderr
    assert "steps, all of which are done" in run(*ARGUMENTS, "--resume").stderr


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one() -> None:
    """Each computes half of every step, by torch's DistributedDataParallel over gloo; some steps are clipped."""
    adamw = ("--optimizer", "adamw", "--learning-rate", 0.01, "--schedule", "constant", "--clip", 0.7)
    options = (*adamw, "--dropout", 0, "--no-progress")
    one = run(*ARGUMENTS, *options, "--out", "one", "--accumulate", 4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "pegasusx_ref", *map(str, (*ARGUMENTS, *options, "--out", "two", "--accumulate", 2))]
    two = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True, timeout=120)
    assert two.stdout == one.stdout.replace("one", "two")
    for row, other in zip(losses("one"), losses("two"), strict=True):
        assert row == pytest.approx(other, rel=1e-6)
