"""`pegasusx-ref bench`: who measures when, what follows from it, the file, the tables, the picture."""

import dataclasses
import importlib.util
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import configs

from pegasusx_ref import InputError, PegasusXConfig, PegasusXForConditionalGeneration, record
from pegasusx_ref.benchmarking import (
    SUITES,
    Aim,
    Case,
    CaseResult,
    Results,
    Run,
    comparing,
    facts,
    measured,
    memory,
    plots,
    read_results,
    report,
    resized,
    resumed,
    run_case,
    running,
    work_of,
    write_results,
)
from pegasusx_ref.benchmarking.facts import differences, digest_of_code
from pegasusx_ref.benchmarking.processes import Repetition, WorkerError, WorkerProcess
from pegasusx_ref.benchmarking.report import as_markdown
from pegasusx_ref.benchmarking.table import duration, tables
from pegasusx_ref.benchmarking.tasks import machine, task_of
from pegasusx_ref.benchmarking.tasks.decoder import encoder_states, writer_of
from pegasusx_ref.benchmarking.tasks.encoder import encoder_of, source_ids
from pegasusx_ref.benchmarking.tasks.load import checkpoint_of, reader_of
from pegasusx_ref.benchmarking.timing import Clock, timed, waiter
from pegasusx_ref.benchmarking.work import core_flops, encoder_flops, numbers_a_token
from pegasusx_ref.cli import main
from pegasusx_ref.cli.bench import ended_in_order
from pegasusx_ref.golden.global_local import block_bounds

FACTS: dict[str, Any] = {
    "machine": {"cpu": "A processor", "cores": 2, "memory_gib": 24, "os": "Linux 6", "gpu": ""},
    "versions": {"python": "3.11", "numpy": "2.4.6", "code of pegasusx-ref": "0123456789ab"},
    "blas": ["openblas 0.3 for Haswell, 2 threads"],
    "torch": {},
    "environment": {"OMP_NUM_THREADS": "2"},
}
SETTINGS = {"suite": "quick", "device": "cpu", "rounds": None, "tokens": None, "preset": None}
ALL = ("transformers", "torch", "numpy", "machine")
TINY = Case("encoder", "tiny", "float32", ALL, 40)
rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "PAUSE", 0.0)


def random_run(rounds: int, around: float) -> Run:
    peaks: list[int | None] = [int(peak) for peak in rng.integers(2**20, 2**30, rounds)]
    return Run((around * rng.uniform(0.8, 1.2, rounds)).tolist(), peaks)


def random_result(case: Case, rounds: int = 5, around: dict[str, float] | None = None) -> CaseResult:
    around = around or {"transformers": 16.0, "torch": 8.0, "numpy": 11.0, "cupy": 5.0, "machine": 4.0}
    runs = {who: random_run(rounds, around[who]) for who in case.implementations}
    if "machine" in runs:
        runs["machine"].memory = [None] * rounds
    return CaseResult(case, runs)


def results_of(*found: CaseResult) -> Results:
    return Results(dict(SETTINGS), FACTS, "pegasusx-ref bench", cases={result.case.name: result for result in found})


# --- how much work a case is -----------------------------------------------------------------------------------------


def core_by_hand(config: PegasusXConfig, T: int, staggered: bool) -> int:
    """Scores and weighted sums take 2 FLOPs a feature each: of each query with the globals and its own block."""
    G = config.num_global_tokens
    blocks = block_bounds(T, config.block_size, staggered)
    local = sum((stop - start) * (G + stop - start) for start, stop in blocks)
    return 4 * config.d_model * (local + G * (G + T))


@settings(max_examples=40)
@given(configs(encoder_layers=3), st.integers(1, 50))
def test_flops_are_those_counted_by_hand(config: PegasusXConfig, T: int) -> None:
    D, M, rows = config.d_model, config.encoder_ffn_dim, T + config.num_global_tokens
    by_hand = 3 * rows * (4 * 2 * D * D + 2 * 2 * D * M)
    by_hand += sum(core_by_hand(config, T, config.stagger_local_blocks and i == 1) for i in range(3))
    assert encoder_flops(config, T) == by_hand
    assert core_flops(config, T) == core_by_hand(config, T, config.stagger_local_blocks)


@settings(max_examples=40)
@given(configs(), st.integers(1, 50), st.integers(1, 9), st.integers(1, 4))
def test_a_token_reads_what_is_counted_by_hand(config: PegasusXConfig, T: int, past: int, beams: int) -> None:
    D, M, N = config.d_model, config.decoder_ffn_dim, config.decoder_layers
    matrices = 4 * D * D + 2 * D * D + 2 * D * M  # of the cross-attention q and out only
    vectors = 3 * 2 * D + M + D
    keys_and_values = 2 * D * (T + beams * past)
    head = config.vocab_size * D
    assert numbers_a_token(config, T, past, beams) == N * (matrices + vectors + keys_and_values) + 2 * D + head


def test_the_work_of_each_kind_of_case(tmp_path: Path) -> None:
    large = PegasusXConfig.preset("large")
    assert work_of(Case("encoder", "large", "float32", ALL, 1500)) == (encoder_flops(large, 1500), "FLOP")
    assert work_of(Case("core", "large", "float32", ALL, 1500)) == (core_by_hand(large, 1500, True), "FLOP")
    decoder = Case("decoder", "large", "bfloat16", ALL, 1500, beams=8)
    assert work_of(decoder) == (2 * numbers_a_token(large, 1500, 6, 8), "B")
    load = Case("load", "tiny", "float32", ALL)
    with checkpoint_of(load) as folder:
        stored = (folder / "model.safetensors").read_bytes()
        assert work_of(load) == (len(stored) - 8 - int.from_bytes(stored[:8], "little"), "B")
    assert not folder.exists()


# --- cases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_cases_have_names_of_their_own_and_survive_json(suite: str) -> None:
    cases = SUITES[suite]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert Case.from_dict(json.loads(json.dumps(dataclasses.asdict(case)))) == case
        assert {aim.implementation for aim in case.aims} <= set(case.implementations) - {"machine", case.reference}


def test_another_size_has_its_own_names_and_no_aims() -> None:
    small = resized(SUITES["cpu"], tokens=40, preset="tiny")
    assert [case.name for case in small] == [
        "encoder-tiny-40",
        "encoder-tiny-40-bf16",
        "decoder-tiny-40-1-beam",
        "decoder-tiny-40-8-beams",
        "load-tiny",
    ]
    assert not any(case.aims or case.grows_from for case in small)
    assert resized(SUITES["cpu"]) == SUITES["cpu"]


# --- rounds ----------------------------------------------------------------------------------------------------------


class Workers:
    """Stands in for the processes, and notes who is asked when."""

    def __init__(self, seconds: float = 0.0, dying: dict[str, int] | None = None) -> None:
        self.asked: list[str] = []
        self.closed: list[str] = []
        self.seconds, self.dying = seconds, dying or {}

    def __call__(self, wish: dict[str, Any]) -> "Worker":
        if self.dying.get(wish["implementation"]) == 0:
            raise WorkerError("it cannot be had here")
        return Worker(self, wish["implementation"])


class Worker:
    def __init__(self, workers: Workers, name: str) -> None:
        self.workers, self.name, self.count = workers, name, 0

    def repeat(self) -> Repetition:
        self.workers.asked.append(self.name)
        self.count += 1
        if self.workers.dying.get(self.name) == self.count:
            raise WorkerError("it ran out of memory")
        time.sleep(self.workers.seconds)
        return Repetition(100.0 * ALL.index(self.name) + self.count, self.count)

    def close(self) -> None:
        self.workers.closed.append(self.name)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_rounds_alternate_and_every_other_one_runs_backwards() -> None:
    workers = Workers()
    result = run_case(TINY, "cpu", start=workers)
    assert workers.asked == [*ALL, *ALL[::-1], *ALL, *ALL[::-1], *ALL]
    assert result.runs["numpy"].seconds == [201, 202, 203, 204, 205]
    assert result.runs["torch"].memory == [1, 2, 3, 4, 5]
    assert sorted(workers.closed) == sorted(ALL)


def test_long_repetitions_take_fewer_rounds_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LONG", 0.001)
    assert len(run_case(TINY, "cpu", start=Workers(0.002)).runs["torch"].seconds) == 3
    assert len(run_case(TINY, "cpu", rounds=4, start=Workers(0.002)).runs["torch"].seconds) == 4


def test_who_dies_costs_only_its_own_column() -> None:
    workers = Workers(dying={"torch": 2, "numpy": 0})
    result = run_case(TINY, "cpu", start=workers)
    assert {who: (len(run.seconds), run.problem) for who, run in result.runs.items()} == {
        "transformers": (5, None),
        "torch": (1, "it ran out of memory"),
        "numpy": (0, "it cannot be had here"),
        "machine": (5, None),
    }
    assert workers.asked.count("torch") == 2
    assert workers.closed[0] == "torch"  # at once: its memory is for the others


def test_progress_never_runs_ahead() -> None:
    seen: list[tuple[str, int, int]] = []
    run_case(TINY, "cpu", rounds=2, watch=lambda _, what, i, n: seen.append((what, i, n)), start=Workers())
    steps = [(i, n) for what, i, n in seen if what.startswith("round")]
    assert steps == [(i, 8) for i in range(8)]


# --- processes -------------------------------------------------------------------------------------------------------


def process(code: str, wish: dict[str, Any] | None = None) -> WorkerProcess:
    return WorkerProcess(wish or {"ready": True}, (sys.executable, "-c", code))


READY = "import json, os, sys, time; sys.stdin.readline(); print('{}', flush=True); sys.stdin.readline();"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (
            "print('the library is broken', file=sys.stderr); sys.exit(3)",
            r"^ended with exit code 3: the library is broken$",
        ),
        ("os.kill(os.getpid(), 9)", r"^ended by SIGKILL, as systems do where memory runs out$"),
        ("os.kill(os.getpid(), 11)", r"^ended by SIGSEGV$"),
        ("print(json.dumps({'error': 'MemoryError: 9 GiB'}), flush=True)", r"^MemoryError: 9 GiB$"),
    ],
)
def test_a_worker_that_dies_says_why(end: str, reason: str) -> None:
    with process(READY + end) as worker, pytest.raises(WorkerError, match=reason):
        worker.repeat()


def test_a_worker_that_dies_at_its_start_says_why() -> None:
    with pytest.raises(WorkerError, match=r"^ended with exit code 1: ModuleNotFoundError: No module named 'nowhere'$"):
        process("import nowhere")


def test_a_worker_in_the_middle_of_its_work_can_be_ended() -> None:
    started = time.perf_counter()
    with process(READY + "time.sleep(60)"):
        pass
    assert time.perf_counter() - started < 30


def wish(case: Case, implementation: str) -> dict[str, Any]:
    return {"case": dataclasses.asdict(case), "implementation": implementation, "device": "cpu", "folder": None}


def test_what_libraries_print_is_no_reply() -> None:
    code = """
import os
from pegasusx_ref.benchmarking import worker
def talkative(*_):
    def task(tokens):
        print("stray")
        os.write(1, b"stray too\\n")
        os.system("echo and stray")
        return 0.25
    return task
worker.task_of = talkative
worker.main()
"""
    with process(code, wish(TINY, "numpy")) as worker:
        assert [worker.repeat().seconds for _ in range(2)] == [0.25, 0.25]


def test_a_real_worker_measures_and_one_that_cannot_run_says_why() -> None:
    with WorkerProcess(wish(TINY, "numpy")) as worker:
        for _ in range(2):
            seconds, peak = worker.repeat()
            assert 0 < seconds < 10
            assert peak is None or 0 < peak < 2**30
    with pytest.raises(WorkerError, match=r"^backend 'numpy' does not compute in 'bfloat16'"):
        WorkerProcess(wish(dataclasses.replace(TINY, dtype="bfloat16"), "numpy"))


# --- the work itself -------------------------------------------------------------------------------------------------


def test_all_encoders_compute_the_same(transformers: ModuleType) -> None:
    ids = source_ids(TINY, 40)
    ours, torch, theirs = (np.asarray(encoder_of(TINY, who, "cpu")(ids)) for who in ("numpy", "torch", "transformers"))
    assert ours.shape == (1, 40, 32)
    for other in (torch, theirs):
        assert np.abs(ours - other).max() < 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("beams", [1, 3])
def test_all_searches_write_the_same_and_note_every_step(transformers: ModuleType, beams: int) -> None:
    case = Case("decoder", "tiny", "float32", ALL, 40, beams)
    written = {}
    for who in ("numpy", "torch", "transformers"):
        clock = Clock(lambda: None)
        states = encoder_states(case, 40)
        with record("lm_head") as trace:
            first, again = (np.asarray(writer_of(case, who, "cpu")(states, clock)).tolist() for _ in range(2))
        assert first == again
        assert who == "transformers" or trace["lm_head"].shape[:2] == (1, beams)
        assert len(clock.times) == 2 * 12
        written[who] = first
    assert written["numpy"] == written["torch"] == written["transformers"]


def test_all_loaders_read_the_same(transformers: ModuleType) -> None:
    case = Case("load", "tiny", "float32", ALL)
    with checkpoint_of(case) as folder:
        sums = [reader_of(case, who, "cpu", folder)() for who in ("numpy", "torch", "transformers")]
    weights = PegasusXForConditionalGeneration.from_random(case.config).state_dict()
    assert sums == pytest.approx([sum(float(tensor.sum()) for tensor in weights.values())] * 3, rel=1e-4)


def test_a_token_takes_the_median_interval_without_the_first_two() -> None:
    clock = Clock(lambda: None)
    intervals = [9.0, 8.0, *(later := list(rng.uniform(1, 2, 7)))]
    clock.times = list(np.cumsum([5.0, *intervals]))
    assert clock.per_token() == pytest.approx(statistics.median(later))


def test_the_core_runs_on_every_backend() -> None:
    pytest.importorskip("torch")
    case = Case("core", "tiny", "float32", ("torch", "numpy"), 40)
    for who in case.implementations:
        assert 0 < task_of(case, who, "cpu")(40) < 10


def test_the_machine_s_limit_is_the_best_of_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = (lambda: time.sleep(0.05)), (lambda: time.sleep(0.01))
    monkeypatch.setattr(machine, "LEAST", 0.0)
    for kind, of in (("encoder", "products"), ("load", "reads")):
        monkeypatch.setattr(machine, of, lambda *_: [(slow, lambda: None, 10.0), (quick, lambda: None, 10.0)])
        case = dataclasses.replace(TINY, kind=kind)
        rate = work_of(case).amount / task_of(case, "machine", "cpu")(40)
        assert 10 / 0.025 < rate <= 10 / 0.01


def test_the_machine_s_products_and_reads_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SIZES", (48, 0))
    monkeypatch.setattr(machine, "LENGTHS", (1000, 0))
    has_torch = importlib.util.find_spec("torch") is not None
    for measurements, work in ((machine.products("float32", "cpu"), 2 * 48**3), (machine.reads("cpu"), 4 * 1000)):
        assert len(measurements) == 1 + has_torch
        for call, wait, counted in measurements:
            assert counted == work
            call()
            wait()
    assert len(machine.products("bfloat16", "cpu")) == has_torch


def test_cuda_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = pytest.importorskip("torch")
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(device))
    assert timed(lambda: log.append("work"), waiter("transformers", "cuda:0")) > 0
    assert log == ["cuda:0", "work", "cuda:0"]
    log.clear()
    cupy: Any = ModuleType("cupy")
    cupy.cuda = ModuleType("cuda")
    cupy.cuda.Device = lambda: type("Device", (), {"synchronize": lambda _: log.append("cupy")})()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    timed(lambda: log.append("work"), waiter("cupy", "cuda:0"))
    assert log == ["cupy", "work", "cupy"]


# --- memory ----------------------------------------------------------------------------------------------------------

MIB = 2**20


@pytest.mark.skipif(not memory.can_forget_peaks(), reason="memory is read from Linux's /proc")
def test_memory_is_that_of_the_work_at_its_peak() -> None:
    meter = memory.meter("numpy", "cpu")
    for size in (96, 32, 64):
        meter.start()
        np.full(size * MIB // 8, rng.random()).sum()
        peak = meter.peak()
        assert peak is not None
        assert size - 1 < peak / MIB < size + 16  # the kernel counts a little behind


@pytest.mark.skipif(not memory.can_forget_peaks(), reason="memory is read from Linux's /proc")
def test_what_an_earlier_repetition_left_behind_hides_nothing() -> None:
    meter, kept = memory.meter("numpy", "cpu"), []
    for _ in range(2):
        meter.start()
        kept.append(np.full(48 * MIB // 8, rng.random()))
    peak = meter.peak()
    assert peak is not None
    assert peak / MIB > 95


def test_memory_on_a_gpu_is_what_the_library_s_pool_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reserved with reserved: recorded graphs keep what they need there, and never say so again."""
    torch: Any = pytest.importorskip("torch")
    state = {"reserved": 900, "most": 900}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: state.update(reserved=700))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: state["reserved"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: state["most"])
    meter = memory.meter("transformers", "cuda:0")
    state["most"] = 2100  # in the warm-up
    meter.start()
    assert meter.peak() == 1400
    held = {"bytes": 500}
    pool: Any = type("Pool", (), {"total_bytes": lambda _: held["bytes"]})()
    pool.free_all_blocks = lambda: held.update(bytes=300)
    cupy: Any = ModuleType("cupy")
    cupy.get_default_memory_pool = lambda: pool
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    meter = memory.meter("cupy", "cuda:0")
    held["bytes"] = 1000
    meter.start()  # empties nothing: filling the pool again would cost time
    assert meter.peak() == 700


@pytest.mark.skipif(not memory.can_forget_peaks(), reason="memory is read from Linux's /proc")
def test_what_a_library_keeps_from_its_first_use_on_counts() -> None:
    """As a second copy of the weights, in an order that is faster to read."""
    code = """
import numpy as np
from pegasusx_ref.benchmarking import worker
def keeping(*_):
    kept = []
    def task(tokens):
        if not kept:
            kept.append(np.ones(48 * 2**20 // 8))
        return 0.25
    return task
worker.task_of = keeping
worker.main()
"""
    with process(code, wish(TINY, "numpy")) as worker:
        for _ in range(2):
            peak = worker.repeat().memory
            assert peak is not None
            assert 47 < peak / MIB < 70


# --- ratios, shares, aims --------------------------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round() -> None:
    result = random_result(TINY)
    theirs, ours = result.runs["transformers"].seconds, result.runs["torch"].seconds
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    assert comparing.ratio(result, "torch") == (ratios[2], ratios[0], ratios[-1])
    assert comparing.ratio(result, "transformers") is None
    assert comparing.ratio(result, "machine") is None
    peaks = zip(result.runs["torch"].memory, result.runs["transformers"].memory, strict=True)
    found = comparing.ratio(result, "torch", "memory")
    assert found is not None
    assert found.median == statistics.median((mine or 0) / (other or 0) for mine, other in peaks)


def test_who_died_is_compared_over_its_own_rounds() -> None:
    result = random_result(TINY)
    del result.runs["torch"].seconds[2:]
    pairs = list(zip(result.runs["torch"].seconds, result.runs["transformers"].seconds, strict=False))
    found = comparing.ratio(result, "torch")
    assert found is not None
    assert found.median == statistics.median(mine / other for mine, other in pairs)
    result.runs["torch"].seconds.clear()
    assert comparing.ratio(result, "torch") is None


def test_a_share_is_that_of_the_machine_s_rate_in_the_same_round() -> None:
    result = random_result(TINY)
    pairs = zip(result.runs["machine"].seconds, result.runs["numpy"].seconds, strict=True)
    assert comparing.share(result, "numpy") == statistics.median(least / took for least, took in pairs)
    seconds = statistics.median(result.runs["numpy"].seconds)
    assert comparing.rate(result, "numpy") == work_of(TINY).amount / seconds
    result.runs["machine"].seconds.clear()
    assert comparing.share(result, "numpy") is None


def test_aims_are_met_up_to_their_value_and_a_share_from_it_on() -> None:
    longer = dataclasses.replace(TINY, tokens=160, grows_from=40)
    short, long = random_result(TINY), random_result(longer, around=dict.fromkeys(ALL, 50.0))
    results = results_of(short, long)
    grown = statistics.median(long.runs["torch"].seconds) / statistics.median(short.runs["torch"].seconds)
    aim = Aim("torch", "growth", grown)
    assert comparing.reached(results, long, aim) == grown
    assert comparing.is_met(aim, grown)
    assert not comparing.is_met(aim, grown * 1.001)
    share = Aim("torch", "share", 0.45)
    assert comparing.is_met(share, 0.45)
    assert not comparing.is_met(share, 0.449)
    assert comparing.reached(results, long, share) == comparing.share(long, "torch")
    assert comparing.growth(results_of(long), long, "torch") is None


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_file_holds_all_and_what_follows_from_it(tmp_path: Path) -> None:
    case = dataclasses.replace(TINY, aims=(Aim("torch", "time", 0.9), Aim("numpy", "time", 0.01)))
    results = results_of(random_result(case))
    results.cases[case.name].runs["numpy"].problem = "it ran out of memory"
    results.extra["tests"] = {"returncode": 0}
    path = tmp_path / "bench.json"
    write_results(path, results)
    assert read_results(path) == results
    summary = json.loads(path.read_text())["summary"][case.name]
    found = comparing.ratio(results.cases[case.name], "torch")
    assert found is not None
    assert summary["torch"]["time_ratio"] == found._asdict()
    assert [aim["met"] for who in ("torch", "numpy") for aim in summary[who]["aims"]] == [True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretends to measure, and lists what was."""
    done: list[str] = []

    def pretend(case: Case, *_: Any) -> CaseResult:
        if "8-beams" in case.name:
            raise KeyboardInterrupt
        done.append(case.name)
        return random_result(case)

    monkeypatch.setattr(running, "run_case", pretend)
    monkeypatch.setattr("pegasusx_ref.cli.bench.facts", lambda: FACTS)
    monkeypatch.setattr("pegasusx_ref.cli.bench.busy_cores", lambda: 0.1)
    monkeypatch.setattr("pegasusx_ref.cli.bench.cores", lambda: 2)
    return done


def test_a_later_run_does_the_cases_that_are_missing(measuring: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    cases = [dataclasses.replace(TINY, tokens=tokens) for tokens in (40, 80, 160)]
    begun = resumed(path, SETTINGS, FACTS, "a command")
    assert [result.case for result in measured(cases[:2], begun, path, "cpu")] == cases[:2]
    again = resumed(path, SETTINGS, FACTS, "a command")
    assert again == begun
    assert [result.case for result in measured(cases, again, path, "cpu")] == cases[2:]
    assert measuring == [case.name for case in cases]
    assert list(read_results(path).cases) == measuring
    assert not resumed(path, SETTINGS, FACTS, "a command", fresh=True).cases


def test_what_has_changed_or_was_killed_is_measured_again(measuring: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    cases = [dataclasses.replace(TINY, tokens=tokens) for tokens in (40, 80, 160)]
    results = results_of(*map(random_result, cases))
    runs = [results.cases[case.name].runs for case in cases]
    runs[0]["torch"].problem = "ended by SIGKILL, as systems do where memory runs out"
    runs[1]["torch"].problem = "torch is not installed"  # and will not be
    cases[2] = dataclasses.replace(cases[2], aims=(Aim("torch", "time", 0.5),))
    again = [result.case for result in measured(cases, results, path, "cpu")]
    assert again == [cases[0], cases[2]]
    assert read_results(path).cases[cases[2].name].case.aims


def test_where_nobody_runs_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.json"
    none = CaseResult(TINY, {who: Run(problem=f"no {who} here") for who in ALL})
    monkeypatch.setattr(running, "run_case", lambda *_: none)
    with pytest.raises(InputError, match=r"nobody could run encoder-tiny-40 on cuda:0: .*; numpy: no numpy here"):
        list(measured([TINY], results_of(), path, "cuda:0"))
    assert not path.exists()


def test_code_that_changes_under_a_run_ends_it(
    measuring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["before", "before", "after"])
    monkeypatch.setattr(running, "digest_of_code", lambda: next(digests))
    path = tmp_path / "bench.json"
    cases = [dataclasses.replace(TINY, tokens=tokens) for tokens in (40, 80)]
    with pytest.raises(InputError, match="the code has changed while encoder-tiny-80 was measured"):
        list(measured(cases, results_of(), path, "cpu"))
    assert list(read_results(path).cases) == ["encoder-tiny-40"]


def test_a_file_without_cases_binds_nobody(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_results(path, results_of())
    assert resumed(path, SETTINGS | {"device": "cuda:0"}, FACTS, "a command").settings["device"] == "cuda:0"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/bench\.json: cannot be written \(.+\): --out names another file"):
        write_results(tmp_path / "file" / "bench.json", results_of(random_result(TINY)))


@pytest.mark.parametrize(
    ("settings", "facts", "said"),
    [
        ({"device": "cuda:0"}, {}, r"device: cpu then, cuda:0 now"),
        ({}, {"versions": FACTS["versions"] | {"numpy": "2.5.0"}}, r"versions: numpy: 2.4.6 then, 2.5.0 now"),
        ({}, {"environment": {"OMP_NUM_THREADS": "1"}}, r"environment: OMP_NUM_THREADS: 2 then, 1 now"),
        ({"rounds": 2, "suite": "cpu"}, {"blas": [], "torch": {"threads": 1}}, r"suite: .* and 1 more"),
    ],
)
def test_what_was_measured_otherwise_is_refused(
    settings: dict[str, Any], facts: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "bench.json"
    write_results(path, results_of(random_result(TINY)))
    with pytest.raises(InputError, match=rf"was measured otherwise \(.*{said}.*\): --fresh starts anew, --out names"):
        resumed(path, SETTINGS | settings, FACTS | facts, "a command")


@pytest.mark.parametrize("content", ["", "[1]", '{"format": 0}', '{"format": 1}', '{"format": 1, "cases": {"a": 1}}'])
def test_a_file_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"bench\.json: not a file of pegasusx-ref bench \(.+\): --fresh starts anew"):
        read_results(path)


DAMAGES: dict[str, Any] = {
    "no settings": lambda entries: entries["settings"].clear(),
    "settings that are a list": lambda entries: entries.update(settings=[1]),
    "no facts": lambda entries: entries["facts"].clear(),
    "times that are words": lambda entries: entries["cases"]["encoder-tiny-40"]["runs"]["torch"].update(seconds="abc"),
    "an unknown dtype": lambda entries: entries["cases"]["encoder-tiny-40"]["case"].update(dtype="int9"),
    "an unknown model": lambda entries: entries["cases"]["encoder-tiny-40"]["case"].update(preset="huge"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_results(path, results_of(random_result(TINY)))
    entries = json.loads(path.read_text())
    DAMAGES[damage](entries)
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"bench\.json: not a file of pegasusx-ref bench \(.+\): --fresh starts anew"):
        read_results(path)


@pytest.mark.parametrize(
    ("part", "counts"),
    [
        ("benchmarking/timing.py", True),
        ("benchmarking/tasks/encoder.py", True),
        ("study/costs.py", True),
        ("encoder.py", True),
        ("benchmarking/report.py", False),
        ("cli/bench.py", False),
        ("study/pictures/canvas.py", False),
    ],
)
def test_the_digest_is_of_what_computes_and_measures(
    part: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setitem(digest_of_code.__globals__, "find_spec", lambda _: spec)
    digests = []
    for content in ("a", "b"):
        (tmp_path / part).write_text(content)
        digests.append(digest_of_code())
    assert (digests[0] != digests[1]) == counts


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "ONEDNN_MAX_CPU_ISA", "NPY_DISABLE_CPU_FEATURES"])
def test_variables_that_steer_libraries_are_facts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts()
    monkeypatch.setenv(name, "1")
    assert differences(before, facts()) == [f"environment: {name}: None then, 1 now"]


def test_facts_of_this_machine_do_not_change_from_moment_to_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts()
    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "TRUE")  # as threadpoolctl does when it is first loaded
    assert differences(found, json.loads(json.dumps(facts()))) == []
    assert found["versions"]["numpy"] == np.__version__
    assert found["machine"]["cores"] >= 1
    assert found["environment"].get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")
    assert bool(found["torch"]) == (importlib.util.find_spec("torch") is not None)


# --- tables and picture ----------------------------------------------------------------------------------------------


def suite_results(suite: str) -> Results:
    around = {"transformers": 16.0, "torch": 0.9, "numpy": 1.3, "cupy": 0.7, "machine": 0.4}
    return results_of(*(random_result(case, around=around) for case in SUITES[suite]))


@pytest.mark.parametrize("suite", SUITES)
def test_a_report_fits_a_terminal(suite: str) -> None:
    lines = report(suite_results(suite))
    assert max(map(len, lines)) <= 120, max(lines, key=len)


def test_rows_say_what_was_measured_and_whether_it_is_aimed_at() -> None:
    aims = (Aim("torch", "time", 0.55), Aim("numpy", "time", 0.5), Aim("numpy", "share", 0.45))
    case = dataclasses.replace(TINY, aims=aims)
    amount = work_of(case).amount
    runs = {
        "transformers": Run([20.0, 10.0, 16.0], [2**30] * 3),
        "torch": Run([8.0, 5.0, 9.6], [2**29] * 3),
        "numpy": Run([12.0, 8.0, 9.6], [None] * 3),
        "machine": Run([4.0, 4.0, 4.8], [None] * 3),
    }
    results = results_of(CaseResult(case, runs))
    time_table, memory_table, rates = (section.table for section in tables(results))
    header = ["case", "transformers", "torch", "ratio", "range", "aim", "numpy", "ratio", "range", "aim"]
    assert time_table.header == header
    assert time_table.rows[0] == [
        "encoder-tiny-40",
        "16.0 s",
        *("8.00 s", "0.50", "0.40–0.60", "0.55 ✓"),
        *("9.60 s", "0.60", "0.60–0.80", "0.5 ✗"),
    ]
    assert memory_table.rows[0] == ["encoder-tiny-40", "1.00 GiB", "512 MiB", "0.50", "0.50–0.50", "-"]
    assert rates.header == ["case", "machine", "transformers", "share", "torch", "share", "numpy", "share", "aim"]
    by_second = [f"{amount / seconds / 1e3:.0f} kFLOP/s" for seconds in (4.0, 16.0, 8.0, 9.6)]
    expected = [by_second[0], by_second[1], "30 %", by_second[2], "50 %", by_second[3], "50 %", "0.45 ✓"]
    assert rates.rows[0] == ["encoder-tiny-40", *expected]
    assert "Aims that are met: 2 of 3." in report(results)
    assert as_markdown(time_table)[:2] == [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * 9}"]


def test_who_did_not_run_is_in_the_table_and_once_below_it() -> None:
    results = results_of(random_result(TINY), random_result(dataclasses.replace(TINY, tokens=80)))
    for result in results.cases.values():
        result.runs["torch"] = Run(problem="torch is not installed")
    lines = report(results)
    assert lines[-1] == "- torch: torch is not installed (encoder-tiny-40, encoder-tiny-80)"
    (row, *_) = [line for line in lines if line.startswith("encoder-tiny-40 ")]
    assert "failed" in row


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004123, "0.41 ms"),
        (0.04, "40.0 ms"),
        (0.09997, "100 ms"),
        (0.9994, "999 ms"),
        (1.0, "1.00 s"),
        (9.996, "10.0 s"),
        (110.4, "110 s"),
    ],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_picture_has_a_line_for_each_and_labels_that_do_not_touch(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    longest, results = plots.longest_series, suite_results("cpu")
    results.cases["encoder-large-16384"].runs["numpy"].seconds[0] *= 50
    figure = plots.scaling(results)
    time_axes, memory_axes = figure.axes
    lengths = {len(container[0].get_xdata()) for container in time_axes.containers}
    assert lengths == {4}
    assert len(time_axes.containers) == 4
    assert len(memory_axes.containers) == 3
    seconds = [second for result in longest(results) for run in result.runs.values() for second in run.seconds]
    low, high = time_axes.get_ylim()
    assert low < min(seconds) <= max(seconds) < high
    for axes in figure.axes:
        heights = sorted(text.get_position()[1] for text in axes.texts)
        assert np.diff(heights).min() >= plots.LEAST_GAP - 1e-9
    figure.savefig(tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_a_round_without_memory_is_left_out_of_the_picture() -> None:
    pytest.importorskip("matplotlib")
    results = suite_results("quick")
    results.cases["encoder-base-256"].runs["numpy"].memory[0] = 0
    _, memory_axes = plots.scaling(results).axes
    assert memory_axes.get_ylim()[0] > 0


def test_there_is_nothing_to_draw_of_one_length() -> None:
    with pytest.raises(InputError, match="encoder cases of one model at two lengths"):
        plots.scaling(results_of(random_result(TINY)))


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["bench", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_measures_prints_draws_and_goes_on(measuring: list[str], tmp_path: Path) -> None:
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    result = run("--suite", "quick", "--out", out, "--case", "encoder-base-256")
    assert result.exit_code == 0
    first, _, third, *_ = result.stdout.splitlines()
    assert first.startswith("Suite quick on cpu, ")
    assert third == "openblas 0.3 for Haswell, 2 threads; OMP_NUM_THREADS=2."
    assert result.stderr.startswith("case 1 of 1, encoder-base-256: transformers ")
    result = run("--suite", "quick", "--out", out, "--plot", picture, "--no-progress")
    assert (result.exit_code, result.stderr) == (0, "")
    assert measuring == [case.name for case in SUITES["quick"]]
    assert picture.stat().st_size > 10_000
    shown = run("--show", "--out", out, "--markdown")
    assert shown.exit_code == 0
    assert "| encoder-base-1024 | " in shown.stdout
    assert len(measuring) == len(SUITES["quick"])


def test_a_busy_machine_is_noted(measuring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegasusx_ref.cli.bench.busy_cores", lambda: 1.04)
    result = run("--suite", "quick", "--out", tmp_path / "bench.json", "--no-progress")
    assert result.exit_code == 0
    noted = "Note: load of the last minute 1.0 on 2 cores: times may be long, and ratios uncertain\n"
    assert result.stderr == noted


def test_without_figures_of_this_package_the_exit_code_is_1(
    measuring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(case: Case, *_: Any) -> CaseResult:
        result = random_result(case)
        for who in set(result.runs) - {"machine"}:
            result.runs[who] = Run(problem="it cannot be had here")
        return result

    monkeypatch.setattr(running, "run_case", pretend)
    command = ("--suite", "quick", "--case", "load-tiny", "--out", tmp_path / "bench.json", "--no-progress")
    result = run(*command)
    assert (result.exit_code, result.stderr) == (1, "Error: no figures of this package: load-tiny\n")
    assert "numpy: it cannot be had here (load-tiny)" in result.stdout
    assert run(*command, "--show").exit_code == 0


def test_a_command_that_is_terminated_ends_in_order(measuring: list[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, ended_in_order():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler


def test_ctrl_c_leaves_what_is_done(measuring: list[str], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = run("--suite", "cpu", "--out", out)
    assert (result.exit_code, result.stdout) == (130, "")
    *_, noted, last = result.stderr.splitlines()
    assert noted == f"Note: 6 cases are in {out}; the same command goes on with the others"
    assert last == "Interrupted"
    assert list(read_results(out).cases) == measuring == [case.name for case in SUITES["cpu"][:6]]


def test_the_list_names_cases_and_aims_and_runs_nothing(measuring: list[str]) -> None:
    result = run("--list")
    assert result.exit_code == 0
    assert "time ≤ 0.35 torch, 0.5 numpy; memory ≤ 0.35 torch, 0.5 numpy; growth ≤" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == [case.name for case in SUITES["cpu"]]
    assert measuring == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "huge"), "'huge' is not one of 'cpu', 'quick', 'cuda'"),
        (
            ("--case", "encoder-large-17"),
            "--case 'encoder-large-17' is not in the suite 'cpu': choose from encoder",
        ),
        (("--out", "corrupt.json/bench.json"), "corrupt.json/bench.json: cannot be written (File exists): --out names"),
        (("--device", "banana"), "--device 'banana' is no device: choose cpu, cuda:0, cuda:1, …"),
        (("--case", "load-large", "--plot", "bench.png"), "nothing to draw: the picture takes encoder cases of one"),
        (("--tokens", "40", "--plot", "bench.png"), "nothing to draw: the picture takes encoder cases of one model"),
        (("--show", "--out", "none.json"), "none.json: No such file or directory"),
        (("--show", "--out", "corrupt.json"), "corrupt.json: not a file of pegasusx-ref bench (JSONDecodeError: "),
        (("--out", "corrupt.json"), "--fresh starts anew, --out names another file"),
        (("--plot", "bench.txt"), "--plot bench.txt: '.txt' is no format of pictures"),
        (("--rounds", "0"), "0 is not in the range x>=1"),
    ],
)
def test_bad_usage_is_refused_in_a_line(
    arguments: tuple[str, ...], message: str, measuring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corrupt.json").write_text('{"format": 1, "cas')
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
    assert measuring == []


def test_without_matplotlib_the_extra_is_named_before_anything_runs(
    measuring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("--out", tmp_path / "bench.json", "--plot", tmp_path / "bench.png")
    assert result.exit_code == 2
    assert "pip install 'pegasusx-ref[study]'" in result.stderr
    assert measuring == []


# --- the check on a GPU ----------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    path = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "facts", lambda: FACTS)
    return module


def test_the_check_on_a_gpu_runs_tests_once_and_then_the_suite(
    gpu_check: Any, measuring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "gpu.json"
    tests = iter([{"returncode": 0}])
    monkeypatch.setattr(gpu_check, "run_tests", lambda: next(tests))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main()  # in the middle of the suite
    assert read_results(out).extra == {"tests": {"returncode": 0}}
    monkeypatch.setattr(running, "run_case", lambda case, *_: random_result(case))
    gpu_check.main()
    assert list(read_results(out).cases) == [case.name for case in SUITES["cuda"]]
    assert "encoder-large-16384-bf16" in capsys.readouterr().out
