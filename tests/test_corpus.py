"""Corpora: documents from files of every kind, batches, failures as rows, and runs that are killed and resumed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli_files import error_line, run

from pegasusx_ref import DEMO_CHECKPOINT, InputError, SummarizationPipeline, pipeline
from pegasusx_ref.corpus import Progress, Summarizer, Summary, summarize_corpus
from pegasusx_ref.corpus.documents import Documents
from pegasusx_ref.corpus.long_texts import divide
from pegasusx_ref.corpus.shards import Shards

pytestmark = pytest.mark.unwatched

HELD_OUT = (Path(__file__).parent / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
TEXTS = [json.loads(line)["description"] for line in HELD_OUT]


@pytest.fixture(scope="module")
def summarization() -> SummarizationPipeline:
    return pipeline(model=DEMO_CHECKPOINT, dtype="float64")


@pytest.fixture
def summarizer(summarization: SummarizationPipeline) -> Summarizer:
    return Summarizer(summarization, max_new_tokens=4, num_beams=1)


def table(folder: str | Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(folder).to_pylist()
    return rows


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- the callable ----------------------------------------------------------------------------------------------------


def test_batches_give_the_summaries_of_single_texts(summarization: SummarizationPipeline) -> None:
    texts = TEXTS[:12]
    alone = [summary["summary_text"] for summary in summarization(texts, max_new_tokens=8)]
    for batch_size, batch_tokens in ((5, 2**16), (12, 300), (3, 1)):
        batched = Summarizer(summarization, batch_size=batch_size, batch_tokens=batch_tokens, max_new_tokens=8)
        assert [each.summary for each in batched.summarize(texts)] == alone
        assert batched.num_real <= batched.num_padded
    assert batched.num_real == batched.num_padded == sum(len(summarization.tokenize(text)[0]) for text in texts)


def test_a_batch_of_columns_gets_the_columns_of_the_results(summarizer: Summarizer) -> None:
    batch = {"text": np.array([TEXTS[0], "", TEXTS[1]], dtype=object), "id": np.arange(3)}
    found = summarizer(batch)
    assert [*found] == ["text", "id", *Summary._fields]
    assert found["id"] is batch["id"]
    assert found["summary"][1] is None
    assert found["error"].tolist() == [None, "is empty: there is nothing to summarize", None]
    assert found["num_tokens"].dtype == np.int64
    with pytest.raises(InputError, match="no column 'text' among 'body': pass text_column="):
        summarizer({"body": []})


def test_what_is_not_a_text_is_an_error_of_its_own(summarizer: Summarizer) -> None:
    found = summarizer.summarize([TEXTS[0], None, 3, " \n", float("nan"), b"bytes"])
    assert [each.error for each in found] == [
        None,
        "is a NoneType, not a text",
        "is a int, not a text",
        "is empty: there is nothing to summarize",
        "is a float, not a text",
        "is a bytes, not a text",
    ]
    assert summarizer.summarize([]) == []


def test_long_texts_are_truncated_refused_or_divided(summarization: SummarizationPipeline) -> None:
    limit = summarization.model.config.max_position_embeddings
    text = " ".join(TEXTS)[:20_000]
    num_tokens = len(summarization.tokenize(text, truncation=False)[0])
    results = {
        long: Summarizer(summarization, long=long, max_new_tokens=3, num_beams=1).summarize([text])[0]
        for long in ("truncate", "error", "map")
    }
    assert results["truncate"][1:] == (limit, num_tokens - limit, 1, None)
    assert results["error"].error == (
        f"has {num_tokens} tokens, more than the model's {limit}: truncate or map long texts"
    )
    mapped = results["map"]
    assert (mapped.num_dropped, mapped.error) == (0, None)
    assert num_tokens / limit <= mapped.num_parts <= num_tokens / limit * 1.3 + 1
    assert mapped.summary is not None
    assert mapped.summary.startswith(str(results["truncate"].summary).split()[0])
    with pytest.raises(InputError, match="long='cut' is unknown: pass one of truncate, error, map"):
        Summarizer(summarization, long="cut")


@settings(max_examples=200)
@given(st.text(st.sampled_from('ab .!?\n"é'), max_size=80), st.integers(2, 20))
def test_a_divided_text_is_whole(text: str, limit: int) -> None:
    """Every part fits, and nothing but white space is lost; here a token is a character, and one ends a text."""
    parts = divide(text, lambda part: len(part) + 1, limit)
    assert all(0 < len(part) < limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_texts_are_divided_at_ends_of_sentences() -> None:
    text = "One two. Three four! Five six seven? Eight nine ten eleven twelve thirteen. Fourteen"
    parts = ["One two. Three four!", "Five six seven?", "Eight nine ten", "eleven twelve", "thirteen. Fourteen"]
    assert divide(text, len, 22) == parts


def test_an_error_of_the_model_is_that_of_its_texts(
    summarization: SummarizationPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = SummarizationPipeline.generate
    sizes: list[int] = []

    def failing(self: SummarizationPipeline, batch: dict[str, Any], *args: Any, **options: Any) -> Any:
        sizes.append(len(batch["input_ids"]))
        if len(batch["input_ids"]) > 2:
            raise MemoryError
        if (batch["attention_mask"].sum(axis=1) == longest).any():
            raise InputError("logits are not finite")
        return generate(self, batch, *args, **options)

    texts = TEXTS[:6]
    lengths = [len(summarization.tokenize(text)[0]) for text in texts]
    longest = max(lengths)
    monkeypatch.setattr(SummarizationPipeline, "generate", failing)
    found = Summarizer(summarization, max_new_tokens=3, num_beams=1).summarize(texts)
    assert [each.error for each in found] == ["logits are not finite" if n == longest else None for n in lengths]
    assert all(each.summary for each in found if each.error is None)
    assert max(sizes) == 6


def test_a_pickle_holds_the_arguments_only() -> None:
    summarizer = Summarizer(DEMO_CHECKPOINT, batch_size=3, max_new_tokens=3, num_beams=1)
    expected = summarizer.summarize(TEXTS[:2])
    pickled = pickle.dumps(summarizer)
    assert len(pickled) < 2000
    assert pickle.loads(pickled).summarize(TEXTS[:2]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
        ({"batch_tokens": 2.5}, "batch_tokens=2.5 must be an integer of at least 1"),
        ({"num_return_sequences": 2}, "num_return_sequences=2: a document gets one summary"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Summarizer(DEMO_CHECKPOINT, **arguments)


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_of_every_kind(tmp_path: Path, summarizer: Summarizer) -> None:
    folder = tmp_path / "texts"
    (folder / "more" / ".hidden").mkdir(parents=True)
    (folder / "a.txt").write_text(TEXTS[0])
    (folder / "more" / "b.md").write_text(f"\ufeff{TEXTS[1]}")
    (folder / "more" / ".hidden" / "c.txt").write_text("not this one")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "binary.txt").write_bytes(b"a\0b")
    write_jsonl(tmp_path / "rows.jsonl", [{"text": TEXTS[2], "id": 1}, {"text": None, "id": 2.5}, [1]])
    (tmp_path / "rows.csv").write_text("text,label,summary\nA library of widgets.,x,old\n")
    columns = {"text": [TEXTS[4]], "day": pyarrow.array([1], pyarrow.date32()), "tags": [["a", "b"]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    inputs = [folder, *(tmp_path / f"rows.{suffix}" for suffix in ("jsonl", "csv", "parquet"))]
    found = summarize_corpus(inputs, tmp_path / "out", summarizer)
    assert (found.total, found.done, found.failed) == (9, 9, 4)
    rows = {(Path(row["file"]).name, row["row"]): row for row in table(tmp_path / "out")}
    errors = {place: row["error"] for place, row in rows.items() if row["error"]}
    assert errors == {
        ("latin.txt", 0): "not UTF-8 text (byte 3)",
        ("binary.txt", 0): "a binary file, not text (it contains a zero byte)",
        ("rows.jsonl", 2): "is a NoneType, not a text",
        ("rows.jsonl", 3): "[1] is not a JSON object",
    }
    texts = {("a.txt", 0): 0, ("b.md", 0): 1, ("rows.jsonl", 1): 2, ("rows.parquet", 1): 4}
    for place, i in texts.items():
        assert rows[place]["summary"] == summarizer.summarize([TEXTS[i]])[0].summary
    assert [rows["rows.jsonl", i]["id"] for i in (1, 2)] == [1.0, 2.5]
    assert (rows["rows.csv", 2]["label"], rows["rows.csv", 2]["input_summary"]) == ("x", "old")
    assert str(rows["rows.parquet", 1]["day"]) == "1970-01-02"
    assert rows["rows.parquet", 1]["tags"] == ["a", "b"]
    assert Documents([folder], "text").num_left_out == 1
    (shard,) = (tmp_path / "out").glob("*.parquet")
    metadata = json.loads(pyarrow.parquet.read_schema(shard).metadata[b"pegasusx-ref"])
    assert metadata["long"] == "truncate"
    assert metadata["max_new_tokens"] == 4


def test_columns_keep_a_type_that_holds_all_of_their_values(tmp_path: Path, summarizer: Summarizer) -> None:
    values: list[dict[str, Any]] = [
        {"n": 1, "mixed": 1, "nothing": None, "list": [1]},
        {"n": None, "mixed": "a", "big": 2**70, "flag": True},
    ]
    write_jsonl(tmp_path / "a.jsonl", [{"text": "One.", **each} for each in values])
    summarize_corpus([tmp_path / "a.jsonl"], tmp_path / "out", summarizer, shard_rows=1)
    first, second = sorted(table(tmp_path / "out"), key=lambda row: row["row"])
    names = ("n", "mixed", "nothing", "list", "big", "flag")
    assert [first[name] for name in names] == [1, "1", None, "[1]", None, None]
    assert [second[name] for name in names] == [None, "a", None, None, str(2**70), True]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Two."], "flag": ["yes"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="column 'flag' is string here and boolean in an earlier file: convert one"):
        Documents([tmp_path / "a.jsonl", tmp_path / "b.parquet"], "text")


def test_patterns_and_addresses(tmp_path: Path, summarizer: Summarizer, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec  # type: ignore[import-untyped]

    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a1.jsonl"), [{"text": TEXTS[0]}])
    write_jsonl(Path("a2.jsonl"), [{"text": TEXTS[1]}])
    assert Documents(["a*.jsonl"], "text").files == ["a1.jsonl", "a2.jsonl"]
    with fsspec.open("memory://corpus/x.txt", "w") as file:
        file.write(TEXTS[2])
    with fsspec.open("memory://corpus/rows.parquet", "wb") as file:
        pyarrow.parquet.write_table(pyarrow.table({"text": [TEXTS[3]]}), file)
    for name, count in (("memory://corpus", 2), ("memory://corpus/*.txt", 1), ("memory://corpus/rows.parquet", 1)):
        assert Documents([name], "text").num_rows == count
    assert summarize_corpus(["memory://corpus"], "out", summarizer).failed == 0
    for name in ("memory://corpus/none*", "nosuch://corpus/x"):
        with pytest.raises(InputError, match=r"memory://corpus/none\*: matches no file|nosuch"):
            Documents([name], "text")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing.txt"], "missing.txt: there is no such file or folder"),
        (["memory://missing/a.txt"], "memory://missing/a.txt: there is no such file or folder"),
        (["none*.txt"], r"none\*.txt matches no file"),
        (["empty"], "empty: no file in it ends in .txt, .text, .md, .jsonl, .csv, .parquet"),
        (["other.jsonl"], "no column 'text' among 'body': name the column of the texts"),
        (["damaged.parquet"], "damaged.parquet: not a parquet file"),
        (["\0"], "is not a path"),
    ],
)
def test_inputs_that_cannot_be_read(
    names: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_jsonl(Path("other.jsonl"), [{"body": "A text."}])
    Path("damaged.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=message):
        Documents(names, "text")


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_table_is_continued_by_text_not_by_place(tmp_path: Path, summarizer: Summarizer) -> None:
    """Equal texts are as many rows as there are; a table of other settings is not continued."""
    rows = [{"text": text} for text in (*TEXTS[:5], TEXTS[0], "", "")]
    write_jsonl(tmp_path / "a.jsonl", rows)
    out = tmp_path / "out"
    first = summarize_corpus([tmp_path / "a.jsonl"], out, summarizer, shard_rows=2, limit=3)
    assert (first.total, first.done, first.resumed) == (8, 3, 0)
    with pytest.raises(InputError, match="holds a table already: continue it with --resume, or name another folder"):
        summarize_corpus([tmp_path / "a.jsonl"], out, summarizer)
    write_jsonl(tmp_path / "a.jsonl", [rows[6], *rows[::-1]])  # in another order, with one more
    second = summarize_corpus([tmp_path / "a.jsonl"], out, summarizer, resume=True)
    assert (second.total, second.done, second.resumed) == (9, 6, 3)
    assert Counter(row["error"] for row in table(out)) == {None: 6, "is empty: there is nothing to summarize": 3}
    assert Counter(row["key"] for row in table(out)).most_common(2)[0][1] == 3
    other = Summarizer(summarizer.pipeline, max_new_tokens=5)
    with pytest.raises(InputError, match=r"was written with max_new_tokens=4, not 5: repeat the run's options"):
        summarize_corpus([tmp_path / "a.jsonl"], out, other, resume=True)


def test_what_is_finished_is_written_when_a_run_is_stopped_or_fails(
    tmp_path: Path, summarization: SummarizationPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS[:12]])
    summarizer = Summarizer(summarization, batch_size=2, max_new_tokens=3, num_beams=1)
    seen: list[Progress] = []
    stopped = summarize_corpus(
        [tmp_path / "a.jsonl"], tmp_path / "out", summarizer, on_progress=seen.append, stops=lambda: seen[-1].done >= 4
    )
    assert stopped.done == len(table(tmp_path / "out")) == 4
    calls = iter(range(3))
    generate = SummarizationPipeline.generate

    def dying(self: SummarizationPipeline, *args: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *args, **options)

    monkeypatch.setattr(SummarizationPipeline, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        summarize_corpus([tmp_path / "a.jsonl"], tmp_path / "out", summarizer, resume=True)
    monkeypatch.undo()
    assert len(table(tmp_path / "out")) == 8
    monkeypatch.setattr("pegasusx_ref.corpus.run.FLUSH_SECONDS", 0.0)
    summarize_corpus([tmp_path / "a.jsonl"], tmp_path / "out", summarizer, resume=True)
    assert len(table(tmp_path / "out")) == len({row["key"] for row in table(tmp_path / "out")}) == 12
    assert len([*(tmp_path / "out").glob("*.parquet")]) == 4


def test_one_process_at_a_time_writes_a_table(tmp_path: Path, summarizer: Summarizer) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": TEXTS[0]}])
    with (
        Shards(tmp_path / "out", {}, {}, resume=False).locked(),
        pytest.raises(InputError, match="another process writes into it"),
    ):
        summarize_corpus([tmp_path / "a.jsonl"], tmp_path / "out", summarizer)


def test_a_run_that_is_killed_at_any_moment_is_resumed(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """kill -9, again and again: at the end every document is there once, with the summary of an undisturbed run."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": text, "n": n} for n, text in enumerate(TEXTS[:40])])
    command = [sys.executable, "-m", "pegasusx_ref", "corpus", "a.jsonl", "--no-progress", "--batch-size", "2"]
    command += ["--shard-rows", "4", "--num-beams", "1", "--max-new-tokens", "8"]

    subprocess.run([*command, "--out", "whole"], cwd=tmp_path, check=True, capture_output=True)
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    out = tmp_path / "killed"
    for _ in range(10 if pytestconfig.getoption("long") else 4):
        process = subprocess.Popen([*command, "--out", "killed", "--resume"], cwd=tmp_path, stdout=subprocess.DEVNULL)
        shards = len([*out.glob("part-*")])
        while process.poll() is None and len([*out.glob("part-*")]) == shards:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(row["summary"] for row in table(out))
    subprocess.run([*command, "--out", "killed", "--resume"], cwd=tmp_path, check=True, capture_output=True)
    expected, found = (sorted(table(tmp_path / name), key=lambda row: row["n"]) for name in ("whole", "killed"))
    assert found == expected


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_and_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), [{"body": TEXTS[0]}, {"body": ""}, {"body": " ".join(TEXTS)}])
    short = ("--num-beams", 1, "--max-new-tokens", 3, "--column", "body")
    result = run("corpus", "a.jsonl", "--out", "table", "--limit", 2, *short)
    assert (result.exit_code, result.stdout) == (0, "table\n")
    lines = result.stderr.splitlines()
    assert lines[0].startswith("Note: no model was given: using the embedded checkpoint")
    assert lines[1].startswith("documents: 2 in ")
    assert lines[2:] == [
        "Note: documents without a summary: 1 of 2 (column error)",
        "Note: documents left: 1; the same command with --resume continues",
    ]
    result = run("corpus", "a.jsonl", "--out", "table", "--resume", "--no-progress", *short)
    assert (result.exit_code, result.stdout) == (0, "table\n")
    (_, line) = result.stderr.splitlines()
    assert line.startswith("Note: tokens dropped beyond the model's length: ")
    assert len(table("table")) == 3
    result = run("corpus", "a.jsonl", "--out", "another", "--resume", "--no-progress", "--limit", 1, *short)
    assert "Note: another had none of these documents: nothing was resumed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.jsonl", "--out", "table"), "missing.jsonl: there is no such file or folder"),
        (("a.jsonl",), "Missing option '--out'"),
        (("--out", "table"), "Missing argument 'INPUT...'"),
        (("a.jsonl", "--out", "table", "--column", "other"), "no column 'other' among 'text': name the column"),
        (("a.jsonl", "--out", "table", "--long", "cut"), "'cut' is not one of 'truncate', 'error', 'map'"),
        (("a.jsonl", "--out", "table", "--batch-size", "0"), "0 is not in the range x>=1"),
        (("a.jsonl", "--out", "a.jsonl"), "a.jsonl"),
        (("a.jsonl", "--out", "table", "--model", "nowhere/at/all"), "nowhere/at/all"),
        (("a.jsonl", "--out", "table", "--backend", "other"), "other"),
        (("nosuch://y", "--out", "table"), "nosuch://y: not an address that fsspec can open here"),
        (("a.jsonl", "--out", "table", "--num-beams", "0"), "0 is not in the range x>=1"),
    ],
)
def test_wrong_commands_end_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), [{"text": TEXTS[0]}])
    assert message in error_line("corpus", *arguments)
