"""Workers of Ray, on a cluster of two nodes in processes of this machine, and the engines that take the callable."""

import builtins
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pegasusx_ref import DEMO_CHECKPOINT
from pegasusx_ref.cli import main
from pegasusx_ref.corpus import Progress, RayEngine, Summarizer, Summary, summarize_corpus
from pegasusx_ref.corpus.ray_pool import Pool, Task
from pegasusx_ref.errors import CheckpointError, ConfigError, InputError

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[test]' -c tests/constraints.txt")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning:ray")]
WORDS = (
    "small",
    "fast",
    "library",
    "reads",
    "writes",
    "images",
    "files",
    "of",
    "many",
    "kinds",
    "and",
    "plays",
    "music",
)
SHORT: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 6, "load": {"dtype": "float64"}}


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 40))) + "." for _ in range(count)]


def corpus_of(path: Path, rows: list[Any]) -> list[Path]:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return [path]


def table(folder: Path) -> dict[int, tuple[str | None, str | None]]:
    """Return summary and error of each row of the input; each is there once."""
    rows = pyarrow.parquet.read_table(folder).to_pylist()
    assert max(Counter(row["row"] for row in rows).values()) == 1
    return {row["row"]: (row["summary"], row["error"]) for row in rows}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores for workers, and a node with two."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=2)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_node_dies_and_every_document_is_there_once(cluster: Any, tmp_path: Path) -> None:
    """The node of both workers dies in the middle, and another one joins later."""
    files = corpus_of(tmp_path / "a.jsonl", [*texts(60), "", 3])
    summarizer = Summarizer(DEMO_CHECKPOINT, batch_size=2, **SHORT)
    dying = cluster.add_node(num_cpus=2)
    events: list[str] = []

    def kill(progress: Progress) -> None:
        if progress.done >= 10 and not events:
            events.append("died")
            cluster.remove_node(dying, allow_graceful=False)
        if progress.done >= 30 and len(events) == 1:
            events.append("joined")
            cluster.add_node(num_cpus=1)

    engine = RayEngine(cluster.address, workers=4)
    done = summarize_corpus(files, tmp_path / "ray", summarizer, engine=engine, shard_rows=8, on_progress=kill)
    assert events == ["died", "joined"]
    assert (done.done, done.failed) == (62, 2)
    summarize_corpus(files, tmp_path / "here", summarizer)
    assert table(tmp_path / "ray") == table(tmp_path / "here")
    assert not ray.is_initialized()


def test_what_ray_replaces_in_this_process_is_put_back(cluster: Any, tmp_path: Path) -> None:
    from ray.experimental import tqdm_ray

    files = corpus_of(tmp_path / "a.jsonl", texts(3))
    before = builtins.print, signal.getsignal(signal.SIGTERM)
    seen: list[bool] = []

    def look(_: Progress) -> None:
        builtins.print = tqdm_ray.safe_print  # as Ray does when its bars appear for the first time
        seen.append(signal.getsignal(signal.SIGTERM) is before[1])

    summarizer = Summarizer(DEMO_CHECKPOINT, **SHORT)
    summarize_corpus(files, tmp_path / "out", summarizer, engine=RayEngine(cluster.address), on_progress=look)
    assert set(seen) == {True}
    assert (builtins.print, signal.getsignal(signal.SIGTERM)) == before


class FakeRay:
    """Workers that end at poison, before the result of their previous task has arrived or after it; one node dies too.

    Args:
        rng: draws which worker goes on, and what arrives.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.node_deaths = rng, 0
        self.workers: list[Any] = []
        self.results: dict[object, list[str] | None] = {}
        self.exceptions = SimpleNamespace(RayError=RuntimeError, RayTaskError=KeyError)

    def remote(self, **_: Any) -> Any:
        return lambda _: SimpleNamespace(remote=self.start)

    def start(self, _: Any) -> Any:
        worker = SimpleNamespace(queue=[], last=None)
        worker.load = SimpleNamespace(remote=lambda: self.queued(worker, ["ready"]))
        worker.summarize = SimpleNamespace(remote=lambda texts: self.queued(worker, texts))
        self.workers.append(worker)
        return worker

    def queued(self, worker: Any, texts: list[str]) -> object:
        reference = object()
        if worker in self.workers:
            worker.queue.append((reference, texts))
        else:
            self.results[reference] = None
        return reference

    def end(self, worker: Any) -> None:
        self.workers.remove(worker)
        self.results |= {reference: None for reference, _ in worker.queue}
        if worker.last in self.results and self.rng.random() < 0.9:
            self.results[worker.last] = None

    def wait(self, references: list[object], timeout: float) -> tuple[list[object], Any]:
        while True:
            arrived = [reference for reference in references if reference in self.results]
            if arrived and self.rng.random() < 0.2:
                return [self.rng.choice(arrived)], None
            worker = self.rng.choice([each for each in self.workers if each.queue] or [None])
            if worker is None:
                continue
            if not self.node_deaths and self.rng.random() < 0.1:
                self.node_deaths += 1
                self.end(worker)
            elif "poison" in worker.queue[0][1]:
                self.end(worker)
            else:
                worker.last, texts = worker.queue.pop(0)
                self.results[worker.last] = texts

    def get(self, reference: object) -> Any:
        texts = self.results.pop(reference)
        if texts is None:
            raise RuntimeError("the worker ended")
        return [Summary(text) for text in texts], 0, 0


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 5))
def test_only_documents_that_end_their_workers_are_errors(seed: int, count: int, size: int) -> None:
    rng = random.Random(seed)
    documents: list[Any] = [
        SimpleNamespace(text="poison" if rng.random() < 0.3 else f"text {i}", row=i) for i in range(count)
    ]
    workers = rng.randint(1, 3)
    tasks = (Task(documents[start : start + size]) for start in range(0, count, size))
    found: list[Any] = []
    for done in Pool(FakeRay(rng), {"CPU": 1, "GPU": 0}, lambda: workers, None).summarize(tasks):
        found += zip(done.documents, done.summaries, strict=True)
    assert sorted(document.row for document, _ in found) == list(range(count))
    for document, summary in found:
        assert (summary.error is not None) == (document.text == "poison")
        assert summary.summary == (None if summary.error else document.text)


class Deadly(Summarizer):
    """Ends its process at some texts."""

    def summarize(self, texts: Any) -> list[Summary]:
        if any("poison" in str(text) for text in texts):
            os._exit(1)
        return super().summarize(texts)


def test_a_document_that_ends_its_workers_is_an_error_of_its_own(cluster: Any, tmp_path: Path) -> None:
    rows = texts(11)
    rows[5] = "some poison"
    files = corpus_of(tmp_path / "a.jsonl", rows)
    engine = RayEngine(cluster.address, workers=2)
    done = summarize_corpus(files, tmp_path / "out", Deadly(DEMO_CHECKPOINT, batch_size=3, **SHORT), engine=engine)
    found = table(tmp_path / "out")
    errors = {row: error for row, (_, error) in found.items() if error}
    assert (done.done, done.failed, len(found)) == (11, 1, 11)
    [(row, error)] = errors.items()
    assert row in (5, 6)  # counted from 0 or 1
    assert error.startswith("2 workers ended with it, the last one: ")
    assert sum(summary is not None for summary, _ in found.values()) == 10


def test_a_run_is_stopped_and_continued_without_ray(cluster: Any, tmp_path: Path) -> None:
    files = corpus_of(tmp_path / "a.jsonl", texts(40))
    summarizer = Summarizer(DEMO_CHECKPOINT, batch_size=2, **SHORT)
    seen: list[int] = []
    stopped = summarize_corpus(
        files,
        tmp_path / "out",
        summarizer,
        engine=RayEngine(cluster.address),
        on_progress=lambda progress: seen.append(progress.done),
        stops=lambda: seen[-1] >= 6,
    )
    assert 6 <= stopped.done < 40
    assert len(table(tmp_path / "out")) == stopped.done
    done = summarize_corpus(files, tmp_path / "out", summarizer, resume=True)
    assert (done.resumed, done.done) == (stopped.done, 40 - stopped.done)
    assert len(table(tmp_path / "out")) == 40


def test_what_a_worker_cannot_load_is_an_error_at_once(cluster: Any, tmp_path: Path) -> None:
    files = corpus_of(tmp_path / "a.jsonl", texts(3))
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in DEMO_CHECKPOINT.iterdir():
        if path.suffix != ".py" and path.is_file():
            (broken / path.name).write_bytes(path.read_bytes()[: 1000 if path.suffix == ".safetensors" else None])
    summarizer = Summarizer(broken, load={"backend": "torch"}, max_new_tokens=3)
    with pytest.raises(CheckpointError, match="safetensors"):
        summarize_corpus(files, tmp_path / "out", summarizer, engine=RayEngine(cluster.address, workers=1))
    impossible = Summarizer(DEMO_CHECKPOINT, max_new_tokens=0)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        summarize_corpus(files, tmp_path / "out", impossible, engine=RayEngine(cluster.address, workers=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"cpus_per_worker": float("nan")}, "cpus_per_worker=nan must be at least 0.01"),
        ({"gpus_per_worker": -1}, "gpus_per_worker=-1 must be a fraction of 1, or a whole number"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker=1.5 must be a fraction of 1, or a whole number"),
    ],
)
def test_impossible_numbers_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        RayEngine(**arguments)


def test_the_command_starts_ray_and_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus_of(Path("a.jsonl"), texts(9))
    command = ["corpus", "a.jsonl", "--num-beams", "1", "--max-new-tokens", "3", "--out"]
    for option in ("--workers=2", "--address=auto", "--cpus-per-worker=1"):
        refused = CliRunner().invoke(main, [*command, "none", option])
        assert refused.exit_code == 2
        assert "pass --engine ray, or leave it out" in refused.stderr
    many = CliRunner().invoke(main, [*command, "none", "--engine", "ray", "--workers", "10000"])
    assert many.exit_code == 2
    assert "10000 workers of 1 CPU each are too many for this machine" in many.stderr
    done = CliRunner().invoke(main, [*command, "out", "--engine", "ray", "--workers", "1"])
    assert done.exit_code == 0, done.stderr
    assert "documents: 9 in" in done.stderr
    assert len(table(tmp_path / "out")) == 9
    assert not ray.is_initialized()


# --- other engines take the callable as it is


def expected(rows: list[str]) -> list[str | None]:
    return [each.summary for each in Summarizer(DEMO_CHECKPOINT, **SHORT).summarize(rows)]


RAY_DATA = """
import json, sys
import ray
from pegasusx_ref.corpus import Summarizer

rows, model, settings = json.load(sys.stdin)
ray.init("local", num_cpus=2)
mapped = ray.data.from_items([{"text": text, "n": n} for n, text in enumerate(rows)]).map_batches(
    Summarizer, fn_constructor_args=(model,), fn_constructor_kwargs=settings, batch_size=4, concurrency=1
)
print(json.dumps(sorted(([row["n"], row["summary"], row["error"]] for row in mapped.take_all()))))
"""


def test_ray_data_maps_batches() -> None:
    rows = texts(12)
    process = subprocess.run(
        [sys.executable, "-c", RAY_DATA],
        input=json.dumps([rows, str(DEMO_CHECKPOINT), SHORT]),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(process.stdout.strip().split("\n")[-1])
    assert found == [[n, summary, None] for n, summary in enumerate(expected(rows))]


def test_datasets_map_batches() -> None:
    datasets = pytest.importorskip("datasets")
    rows = texts(6)
    datasets.disable_progress_bars()
    mapped = datasets.Dataset.from_dict({"text": rows}).map(
        Summarizer(DEMO_CHECKPOINT, **SHORT), batched=True, batch_size=4
    )
    assert mapped["summary"] == expected(rows)
    assert mapped["text"][:] == rows


def test_frames_are_mapped_one_by_one() -> None:
    """What Spark's mapInPandas passes to a function."""
    pandas = pytest.importorskip("pandas")
    rows = texts(5)
    frames = iter(
        [pandas.DataFrame({"text": rows[:3], "n": [0, 1, 2]}), pandas.DataFrame({"text": rows[3:], "n": [3, 4]})]
    )
    found = list(Summarizer(DEMO_CHECKPOINT, **SHORT)(frames))
    assert [list(frame["n"]) for frame in found] == [[0, 1, 2], [3, 4]]
    assert [summary for frame in found for summary in frame["summary"]] == expected(rows)
    assert {str(frame["num_tokens"].dtype) for frame in found} == {"int64"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # Spark's own
def test_spark_maps_frames() -> None:
    pyspark_sql = pytest.importorskip("pyspark.sql", reason="Spark needs pyspark and Java, which CI has not")
    rows = texts(6)
    schema = "text string, summary string, num_tokens long, num_dropped long, num_parts long, error string"
    session = pyspark_sql.SparkSession.builder.master("local[1]").getOrCreate()
    try:
        frame = session.createDataFrame([(text,) for text in rows], "text string")
        found = frame.mapInPandas(Summarizer(DEMO_CHECKPOINT, **SHORT), schema).collect()
    finally:
        session.stop()
    assert {row["text"]: row["summary"] for row in found} == dict(zip(rows, expected(rows), strict=True))
