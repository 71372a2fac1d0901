"""Fine-tuning: the pairs, their order, the loss of a step, and runs that are killed and resumed bit for bit."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli_files import full_after

from conftest import DESCRIPTIONS
from pegasusx_ref import ConfigError, ExtraError, InputError, NumericsError, OutputError, PegasusTokenizer, pipeline
from pegasusx_ref.finetuning import Finetuning, Settings, curves_figure
from pegasusx_ref.finetuning.batches import Example, Order, collate
from pegasusx_ref.finetuning.corpus import Pair, read_corpus
from pegasusx_ref.finetuning.log import read_log

pytestmark = pytest.mark.unwatched

ROWS = [json.loads(line) for line in DESCRIPTIONS[:22]]
TEXTS = [{"document": row["description"][:300], "summary": row["synopsis"]} for row in ROWS]
SHORT = Settings(steps=6, batch_size=2, accumulate=2, eval_every=2, eval_summaries=0, max_source_tokens=30)
FILES = ("state.safetensors", "best/model.safetensors", "last/model.safetensors", "last/config.json")


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 20 pairs to train on and 2 to evaluate on; each run gets a folder of its own in it."""
    folder = tmp_path_factory.mktemp("runs")
    write_jsonl(folder / "train.jsonl", TEXTS[:20])
    write_jsonl(folder / "dev.jsonl", TEXTS[20:])
    return folder


def start(folder: Path, name: str, model: Path, changed: Settings = SHORT, **options: Any) -> Finetuning:
    with warnings.catch_warnings(action="ignore"):
        dev = folder / "dev.jsonl"
        return Finetuning(folder / "train.jsonl", folder / name, model, evaluation=dev, settings=changed, **options)


@pytest.fixture(scope="module")
def whole(folder: Path, model_folder: Path) -> dict[str, Any]:
    """A run that nothing interrupts."""
    return finish(start(folder, "whole", model_folder))


def finish(run: Finetuning) -> dict[str, Any]:
    """Train to the end; return the log without the speed, and the content of the files."""
    for _ in run:
        pass
    log = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_log(run.out / "log.csv")]
    return {"log": log} | {name: (run.out / name).read_bytes() for name in FILES}


# --- pairs -----------------------------------------------------------------------------------------------------------

BROKEN = [
    ("{", "row 3: not JSON (Expecting property name"),
    ("[1]", "row 3: [1] is not a JSON object"),
    ('{"document": "a"}', "row 3: no column 'summary' among 'document'"),
    ('{"document": "a", "summary": 5}', "row 3: column 'summary' holds 5, not a text"),
    ('{"document": " ", "summary": "b"}', "row 3: column 'document' is empty"),
    (b"\xff", "row 3: not JSON ('utf-8' codec can't decode byte 0xff"),
    ("[" * 100_000, "row 3: not JSON ("),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN)
def test_a_broken_row_is_counted_with_its_place_and_reason(line: str | bytes, problem: str, tmp_path: Path) -> None:
    good = json.dumps(TEXTS[0]).encode() + b"\n"
    broken = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\n" + broken + b"\n" + good + broken + b"\n")
    corpus = read_corpus(tmp_path / "pairs.jsonl", "document", "summary")
    assert corpus.pairs == [Pair(place, *TEXTS[0].values()) for place in (1, 4)]
    assert corpus.num_skipped == 2
    assert corpus.first_skipped.startswith(problem)


def test_csv_and_jsonl_hold_the_same_pairs(tmp_path: Path) -> None:
    rows = [*TEXTS[:3], {"document": 'long, "quoted"\n' * 20_000, "summary": "short"}]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["summary", "document"])
        writer.writeheader()
        writer.writerows([*rows, {"summary": "alone"}])
    corpora = [read_corpus(tmp_path / f"pairs.{kind}", "document", "summary") for kind in ("jsonl", "csv")]
    assert [pair[1:] for pair in corpora[0].pairs] == [pair[1:] for pair in corpora[1].pairs]
    assert corpora[1].first_skipped.endswith("column 'document' is empty")


def test_parquet_holds_the_same_pairs(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e '.[corpora]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [*TEXTS, {"document": "alone", "summary": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    corpus = read_corpus(tmp_path / "pairs.parquet", "document", "summary")
    assert [pair[1:] for pair in corpus.pairs] == [tuple(row.values()) for row in TEXTS]
    assert corpus.first_skipped == f"row {len(rows)}: column 'summary' holds None, not a text"


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "pairs.parquet").touch()
    with pytest.raises(ExtraError, match=r"pip install 'pegasusx-ref\[corpora\]'"):
        read_corpus(tmp_path / "pairs.parquet", "document", "summary")


# --- order and learning rate -----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**64 - 1))
def test_an_epoch_takes_every_pair_at_most_once(count: int, batch_size: int, accumulate: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 100, (count, 2))
    examples = [Example(i, np.ones(t, np.int32), np.ones(n, np.int32), "") for i, (t, n) in enumerate(lengths)]
    per_step = min(batch_size * accumulate, count)
    order = Order(examples, per_step, seed)
    epochs = [[order.rows(e * order.steps_per_epoch + 1 + i) for i in range(order.steps_per_epoch)] for e in range(3)]
    for epoch in epochs:
        rows = np.concatenate(epoch)
        assert len({*rows.tolist()}) == len(rows) == count // per_step * per_step
        for step in epoch:
            assert (np.diff(lengths[step, 0]) >= 0).all()
    assert (Order(examples, per_step, seed).rows(5) == order.rows(5)).all()
    if count > 50:
        assert not np.array_equal(epochs[0], epochs[1])
    assert 0 <= order.padding(1) < 1e-12


def test_buckets_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(2, 1000, 512)
    order = Order([Example(0, np.ones(t, np.int32), np.ones(2, np.int32), "") for t in lengths], 8, 0)
    assert order.padding(8) < 0.02
    assert order.padding(2) < order.padding(8)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {1: 1, 50: 1, 100: 1}),
        ("constant", 10, {1: 0.1, 10: 1, 100: 1}),
        ("linear", 0, {1: 1, 51: 0.5, 100: 0.01}),
        ("linear", 20, {10: 0.5, 20: 1, 100: 1 / 81}),
        ("inverse-sqrt", 4, {1: 0.25, 4: 1, 16: 0.5, 100: 0.2}),
    ],
)
def test_learning_rates(schedule: str, warmup: int, expected: dict[int, float]) -> None:
    chosen = Settings(schedule=schedule, warmup_steps=warmup, learning_rate=3e-3, steps=100)
    assert {step: chosen.learning_rate_at(step) / 3e-3 for step in expected} == pytest.approx(expected)


def test_defaults_follow_from_the_number_of_pairs() -> None:
    filled = Settings(optimizer="adamw").with_lengths(128).with_steps(70)
    assert (filled.steps, filled.epochs, filled.warmup_steps, filled.eval_every) == (210, None, 21, 70)
    assert (filled.learning_rate, filled.max_source_tokens, filled.max_target_tokens) == (1e-4, 128, 128)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"dropout": 2.0}, {"learning_rate": float("nan")}, {"seed": -1}])
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Settings(**wrong)


# --- the loss of a step ----------------------------------------------------------------------------------------------


def test_a_step_is_that_of_one_large_batch(folder: Path, model_folder: Path) -> None:
    """The mean over all labels, not the mean of the batches' means."""
    one = replace(SHORT, steps=1, batch_size=6, accumulate=1, dropout=0.0, dtype="float64")
    runs = [start(folder, "one", model_folder, one)]
    runs += [start(folder, "three", model_folder, replace(one, batch_size=2, accumulate=3))]
    batch = collate([runs[0].examples[row] for row in runs[0]._order.rows(1)])
    assert len({*(batch["labels"] != -100).sum(axis=1).tolist()}) > 2
    expected = runs[0].module(**batch, smoothing=0.1).loss.item()
    losses = [record["loss"] for run in runs for record in run]
    assert losses == pytest.approx([expected, expected], rel=1e-12)
    for p, other in zip(*(run.module.parameters() for run in runs), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_training_learns_and_evaluates(folder: Path, model_folder: Path, tokenizer: PegasusTokenizer) -> None:
    changed = replace(
        SHORT, steps=20, batch_size=1, eval_every=20, eval_summaries=1, learning_rate=0.03, max_target_tokens=40
    )
    with pytest.warns(UserWarning, match=r"(train|dev)\.jsonl: \d+ of \d+ (documents|summaries) are truncated to "):
        run = Finetuning(
            folder / "train.jsonl", folder / "learns", model_folder, evaluation=folder / "dev.jsonl", settings=changed
        )
    records = list(run)
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]
    assert [record["step"] for record in records if "rouge1" in record] == [20]
    assert records == read_log(run.out / "log.csv")
    losses = [run.module.eval()(**collate([example])).loss.item() for example in run.held_out]
    lengths = [len(example.labels) for example in run.held_out]
    assert lengths[0] != lengths[1]
    mean = np.average(losses, weights=lengths)
    assert records[-1]["eval_loss"] == pytest.approx(mean, rel=1e-5)
    summarize = pipeline("summarization", run.out / "last")
    assert summarize.tokenizer.get_vocab() == tokenizer.get_vocab()
    (summary,) = summarize(run.held_out[0].target, max_new_tokens=3)
    assert {*summary} == {"summary_text"}
    assert len(curves_figure(run.out / "log.csv").axes) == 2


def test_dropout_is_that_of_the_settings(folder: Path, model_folder: Path) -> None:
    module = start(folder, "dropout", model_folder, replace(SHORT, dropout=0.25)).module
    assert {*module.ops.rates} == {0.25}


# --- runs that end early ---------------------------------------------------------------------------------------------

CHILD = """
import json, os, signal, sys, warnings
import torch
from interruptions import killed_before
from pegasusx_ref.finetuning import Finetuning, Settings

train, out, model, dev, settings, threads, step, line = json.loads(sys.argv[1])
torch.set_num_threads(threads)
warnings.simplefilter("ignore")
run = Finetuning(train, out, model, evaluation=dev, settings=Settings(**settings), resume=True)
take = run._trainer.optimizer.step

def take_then_die():
    take()
    if run.step == step:
        os.kill(os.getpid(), signal.SIGKILL)

run._trainer.optimizer.step = take_then_die
with killed_before(line):
    list(run)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_bit_for_bit(
    folder: Path, model_folder: Path, whole: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """In the middle of a step, and before a drawn line of the code that writes checkpoints and state."""
    draw, num_kills = random.Random(0), 0
    moments = [(-1, draw.randrange(1, 1500)), (3, 0)]
    if request.config.getoption("--long"):
        moments = [(draw.choice([-1, -1, -1, *range(6)]), draw.randrange(1, 8000)) for _ in range(40)]
    paths = [str(folder / "train.jsonl"), str(folder / "killed"), str(model_folder), str(folder / "dev.jsonl")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for trial, (step, line) in enumerate(moments, start=1):
        child = json.dumps([*paths, vars(SHORT), torch.get_num_threads(), step, line])
        done = subprocess.run([sys.executable, "-c", CHILD, child], env=environment, check=False)
        num_kills += done.returncode == -signal.SIGKILL
        if done.returncode != -signal.SIGKILL or trial % 4 == 0:  # 0 where the line comes after the end of the run
            assert done.returncode in (0, -signal.SIGKILL)
            assert finish(start(folder, "killed", model_folder, resume=True)) == whole
            shutil.rmtree(folder / "killed")
    print(f"killed {num_kills} times")
    assert num_kills > len(moments) // 2
    assert finish(start(folder, "killed", model_folder, resume=True)) == whole


def test_a_run_that_is_stopped_resumes_bit_for_bit(folder: Path, model_folder: Path, whole: dict[str, Any]) -> None:
    run = start(folder, "stopped", model_folder)
    for record in run:
        if record["step"] == 2:
            run.stop()
    assert (run.step, run.saved_step) == (3, 3)
    with (run.out / "log.csv").open("a") as log:
        log.write("4,0.1,0.3")  # as a kill leaves it
    torch.manual_seed(1)  # random numbers that another process would draw
    assert finish(start(folder, "stopped", model_folder, resume=True)) == whole
    assert finish(start(folder, "stopped", model_folder, resume=True)) == whole  # nothing is left to do


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_number_that_is_not_finite_ends_the_run_and_the_last_state_stays(
    wrong: str, folder: Path, model_folder: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(folder, f"{wrong} not finite", model_folder)
    forward = run.module.forward

    def broken(**batch: Any) -> Any:
        output: Any = forward(**batch)
        if run.step == 4 and run.module.training:
            if wrong == "loss":
                output.loss = output.loss * torch.inf
            else:
                output.loss.register_hook(lambda grad: grad * torch.nan)
        return output

    monkeypatch.setattr(run.module, "forward", broken)
    rows = ", ".join(str(row + 1) for row in run._order.rows(5))
    with pytest.raises(NumericsError, match=rf"step 5: the .* is (inf|nan), with rows {rows}: lower .* keeps step 4"):
        finish(run)
    assert finish(start(folder, run.out.name, model_folder, resume=True)) == whole


def test_a_full_disk_ends_the_run_and_the_last_state_stays(
    folder: Path, model_folder: Path, whole: dict[str, Any]
) -> None:
    with full_after(1000), pytest.raises(OutputError, match="last: cannot be written: File too large"):
        finish(start(folder, "full", model_folder))
    run = start(folder, "full", model_folder, resume=True)
    records = iter(run)
    for _ in range(3):
        next(records)
    small, large = sorted(len(whole[name]) for name in FILES[:2])
    with (
        full_after((small + large) // 2),
        pytest.raises(OutputError, match=r"state\.safetensors: cannot be written: Fil"),
    ):
        next(records)  # writes last, but not the state
    assert finish(start(folder, "full", model_folder, resume=True)) == whole


def test_a_run_resumes_with_its_own_settings_only(folder: Path, model_folder: Path) -> None:
    run = start(folder, "own", model_folder)
    run.save()
    with pytest.raises(InputError, match=r"own: is not empty: resume the run in it \(--resume\), or name a new"):
        start(folder, "own", model_folder)
    with pytest.raises(InputError, match="its run has accumulate=2, not 1; seed=0, not 1: resume it with its own"):
        start(folder, "own", model_folder, replace(SHORT, accumulate=1, seed=1), resume=True)
    with pytest.raises(InputError, match="its run has checksum="), warnings.catch_warnings(action="ignore"):
        Finetuning(folder / "train.jsonl", run.out, model_folder, settings=SHORT, resume=True)


def test_two_runs_in_a_folder_are_refused(folder: Path, model_folder: Path) -> None:
    records = iter(start(folder, "twice", model_folder))
    next(records)
    second = start(folder, "twice", model_folder, resume=True)
    with pytest.raises(InputError, match="twice: another process is training in it: wait for its end, or stop it"):
        next(iter(second))
    next(records)


def test_memory_that_runs_out_names_the_remedy(
    folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(**_: Any) -> None:
        torch.empty(2**50)

    run = start(folder, "memory", model_folder)
    monkeypatch.setattr(run.module, "forward", forward)
    with pytest.raises(MemoryError, match="step 1, 2 x 30 source tokens: use a smaller batch and accumulate more of"):
        list(run)
