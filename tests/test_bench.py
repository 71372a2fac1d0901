"""`pegasusx-ref bench`: rounds and workers, metrics, the results file, the report, the plot, the command."""

import dataclasses
import importlib.util
import json
import os
import runpy
import signal
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import bench_workers
import numpy as np
import pytest
from bench_workers import MIB
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import configs

from pegasusx_ref import InputError, OutputError, PegasusXConfig, PegasusXForConditionalGeneration, record
from pegasusx_ref.benchmarking import plots, runner
from pegasusx_ref.benchmarking.cases import Aim, Case
from pegasusx_ref.benchmarking.facts import code_digest, differences, facts
from pegasusx_ref.benchmarking.memory import can_reset_peak, memory_meter
from pegasusx_ref.benchmarking.report import as_markdown, duration, report, tables
from pegasusx_ref.benchmarking.results import CaseResult, Results, Run, growth, summarize
from pegasusx_ref.benchmarking.runner import prepare_repetition, run_case, run_cases
from pegasusx_ref.benchmarking.storage import read_results, resume_results, write_results
from pegasusx_ref.benchmarking.suites import SUITES, resize
from pegasusx_ref.benchmarking.tasks import machine, task_for
from pegasusx_ref.benchmarking.tasks.backends import BackendWorkloads
from pegasusx_ref.benchmarking.tasks.timing import median_interval, synchronizer, timed
from pegasusx_ref.benchmarking.tasks.transformers import TransformersWorkloads
from pegasusx_ref.benchmarking.work import CORE, ENCODER, decode_step_reads, matmul_flops, work_of
from pegasusx_ref.benchmarking.workers import Worker, WorkerError
from pegasusx_ref.cli import main
from pegasusx_ref.golden.global_local import block_bounds

pytestmark = pytest.mark.slow

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
LOAD = Case("load", "tiny", "float32", ALL)
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PAUSE", 0.0)


def random_run(rounds: int, around: float) -> Run:
    peaks: list[int | None] = [int(peak) for peak in rng.integers(2**20, 2**30, rounds)]
    return Run((around * rng.uniform(0.94, 1.06, rounds)).tolist(), peaks)


def random_result(case: Case, rounds: int = 5, around: dict[str, float] | None = None) -> CaseResult:
    around = around or {"transformers": 16.0, "torch": 8.0, "numpy": 11.0, "cupy": 5.0, "machine": 4.0}
    around = {"transformers-compiled": 15.0, "golden": 14.0} | around
    runs = {who: random_run(rounds, around[who]) for who in case.implementations}
    if "machine" in runs:
        runs["machine"].memory = [None] * rounds
    return CaseResult(case, runs)


def results_of(*found: CaseResult) -> Results:
    return Results(dict(SETTINGS), FACTS, "pegasusx-ref bench", cases={result.case.name: result for result in found})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    PegasusXForConditionalGeneration.from_random(LOAD.config).save_pretrained(tmp_path)
    return tmp_path


# --- work of a case --------------------------------------------------------------------------------------------------


def core_by_hand(config: PegasusXConfig, T: int, staggered: bool) -> int:
    """Scores and weighted sums take 2 FLOPs per feature: of each query with the global tokens and its own block."""
    G = config.num_global_tokens
    blocks = block_bounds(T, config.block_size, staggered)
    local = sum((stop - start) * (G + stop - start) for start, stop in blocks)
    return 4 * config.d_model * (local + G * (G + T))


@settings(max_examples=40)
@given(configs(encoder_layers=3), st.integers(1, 50))
def test_flops_match_a_count_by_hand(config: PegasusXConfig, T: int) -> None:
    D, M, rows = config.d_model, config.encoder_ffn_dim, T + config.num_global_tokens
    by_hand = 3 * rows * (4 * 2 * D * D + 2 * 2 * D * M)
    by_hand += sum(core_by_hand(config, T, config.stagger_local_blocks and i == 1) for i in range(3))
    assert matmul_flops(config, T, ENCODER) == by_hand
    assert matmul_flops(config, T, CORE) == core_by_hand(config, T, config.stagger_local_blocks)


@settings(max_examples=40)
@given(configs(), st.integers(1, 50), st.integers(1, 9), st.integers(1, 4))
def test_reads_of_a_decode_step_match_a_count_by_hand(config: PegasusXConfig, T: int, past: int, beams: int) -> None:
    D, M, N = config.d_model, config.decoder_ffn_dim, config.decoder_layers
    matrices = 4 * D * D + 2 * D * D + 2 * D * M  # of the cross-attention only q and out
    vectors = 3 * 2 * D + M + D
    keys_and_values = 2 * D * (T + beams * past)
    head = config.vocab_size * D
    assert decode_step_reads(config, T, past, beams) == N * (matrices + vectors + keys_and_values) + 2 * D + head


def test_work_of_each_kind_of_case(checkpoint: Path) -> None:
    large = PegasusXConfig.preset("large")
    assert work_of(Case("encoder", "large", "float32", ALL, 1500)) == (matmul_flops(large, 1500, ENCODER), "FLOP")
    assert work_of(Case("core", "large", "float32", ALL, 1500)) == (core_by_hand(large, 1500, True), "FLOP")
    decoder = Case("decoder", "large", "bfloat16", ALL, 1500, beams=8)
    assert work_of(decoder) == (2 * decode_step_reads(large, 1500, 6, 8), "B")
    stored = (checkpoint / "model.safetensors").read_bytes()
    assert work_of(Case("texts", "tiny", "float32", ALL, 40, texts=3)) == (3 * 64, "tokens")
    assert work_of(Case("start", "demo", "float32", ALL)) == (1, "processes")
    assert work_of(LOAD) == (len(stored) - 8 - int.from_bytes(stored[:8], "little"), "B")


# --- cases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_cases_have_distinct_names_and_survive_json(suite: str) -> None:
    cases = SUITES[suite]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert Case.from_dict(json.loads(json.dumps(dataclasses.asdict(case)))) == case
        assert {aim.implementation for aim in case.aims} <= set(case.implementations) - {"machine"}
        assert case.reference not in {aim.implementation for aim in case.aims if aim.figure in ("time", "memory")}


def test_resized_cases_have_no_duplicates_and_no_aims() -> None:
    small = resize(SUITES["cpu"], tokens=40, preset="tiny")
    assert [case.name for case in small] == [
        "encoder-tiny-40",
        "encoder-tiny-40-bf16",
        "decoder-tiny-40-1-beam",
        "decoder-tiny-40-8-beams",
        "load-tiny",
        "texts-tiny-40-4-beams-batch-16",
        "texts-tiny-40-4-beams",
        "start-demo",
    ]
    assert not any(case.aims or case.grows_from for case in small)
    assert resize(SUITES["cpu"]) == SUITES["cpu"]


# --- rounds ----------------------------------------------------------------------------------------------------------


class FakeWorkers:
    """Replaces worker processes, records their order, and advances a clock by `seconds` at each repetition."""

    def __init__(self, seconds: float = 0.0, fails_at: dict[str, int] | None = None) -> None:
        self.order: list[str] = []
        self.closed: list[str] = []
        self.seconds, self.fails_at, self.now = seconds, fails_at or {}, 0.0

    def __call__(self, prepare: Any, case: Case, name: str, *_: Any) -> "FakeWorker":
        if self.fails_at.get(name) == 0:
            raise WorkerError("it is not installed")
        return FakeWorker(self, name)


class FakeWorker:
    def __init__(self, workers: FakeWorkers, name: str) -> None:
        self.workers, self.name, self.count = workers, name, 0

    def run(self) -> tuple[float, int]:
        self.workers.order.append(self.name)
        self.count += 1
        if self.workers.fails_at.get(self.name) == self.count:
            raise WorkerError("it ran out of memory")
        self.workers.now += self.workers.seconds
        return 100.0 * ALL.index(self.name) + self.count, self.count

    def close(self) -> None:
        self.workers.closed.append(self.name)


def test_rounds_alternate_and_every_other_one_is_reversed() -> None:
    workers = FakeWorkers()
    result = run_case(TINY, "cpu", start=workers)
    assert workers.order == [*ALL, *ALL[::-1], *ALL, *ALL[::-1], *ALL]
    assert result.runs["numpy"].seconds == [201, 202, 203, 204, 205]
    assert result.runs["torch"].memory == [1, 2, 3, 4, 5]
    assert sorted(workers.closed) == sorted(ALL)


@pytest.mark.parametrize(
    ("seconds", "rounds", "expected"),
    [(runner.LONG, None, 5), (runner.LONG + 1, None, 3), (runner.LONG + 1, 4, 4)],
)
def test_long_repetitions_take_fewer_rounds_unless_the_number_is_given(
    seconds: float, rounds: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = FakeWorkers(seconds)
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: workers.now, sleep=lambda _: None))
    assert len(run_case(TINY, "cpu", rounds, start=workers).runs["torch"].seconds) == expected


def test_a_failing_implementation_leaves_the_others_alone() -> None:
    workers = FakeWorkers(fails_at={"torch": 2, "numpy": 0})
    result = run_case(TINY, "cpu", start=workers)
    assert {name: (len(run.seconds), run.problem) for name, run in result.runs.items()} == {
        "transformers": (5, None),
        "torch": (1, "it ran out of memory"),
        "numpy": (0, "it is not installed"),
        "machine": (5, None),
    }
    assert workers.order.count("torch") == 2
    assert workers.closed[0] == "torch"  # at once, to free its memory


def test_progress_counts_the_repetitions_done() -> None:
    seen: list[tuple[str, int, int]] = []
    run_case(TINY, "cpu", 2, on_progress=lambda _, step, i, n: seen.append((step, i, n)), start=FakeWorkers())
    assert [(i, n) for step, i, n in seen if step.startswith("round")] == [(i, 8) for i in range(8)]


# --- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "args", "reason"),
    [
        (bench_workers.exits, (), r"^ended with exit code 3: the library is broken$"),
        (bench_workers.dies_of, (signal.SIGKILL,), r"^ended by SIGKILL, usually because memory ran out$"),
        (bench_workers.dies_of, (signal.SIGSEGV,), r"^ended by SIGSEGV$"),
        (bench_workers.raises, (MemoryError("9 GiB\nof memory"),), r"^MemoryError: 9 GiB$"),
        (bench_workers.raises, (InputError("no tokens"),), r"^no tokens$"),
        (bench_workers.raises, (EOFError("half a file"),), r"^EOFError: half a file$"),
    ],
)
def test_a_failing_worker_gives_the_reason(prepare: Callable[..., Any], args: tuple[Any, ...], reason: str) -> None:
    with closing(Worker(prepare, *args)) as worker, pytest.raises(WorkerError, match=reason):
        worker.run()


def test_a_worker_that_fails_to_prepare_gives_the_reason() -> None:
    with pytest.raises(WorkerError, match=r"^ModuleNotFoundError: No module named 'nowhere'$"):
        Worker(bench_workers.fails_to_prepare)


def test_a_busy_worker_can_be_ended() -> None:
    worker = Worker(bench_workers.never_ends)
    worker._connection.send(None)
    worker.close()
    assert worker._process.exitcode == -signal.SIGKILL


def test_output_of_libraries_does_not_reach_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(Worker(bench_workers.prints)) as worker:
        assert [worker.run() for _ in range(2)] == [0.25, 0.25]
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_reaches_this_process_only() -> None:
    with closing(Worker(bench_workers.sigint_is_blocked)) as worker:
        assert worker.run()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_worker_measures_a_backend_and_reports_one_that_cannot_run() -> None:
    with closing(Worker(prepare_repetition, TINY, "numpy", "cpu", None)) as worker:
        for _ in range(2):
            seconds, peak = worker.run()
            assert seconds > 0
            assert peak is None or 0 < peak < 2**30
    with pytest.raises(WorkerError, match=r"^backend 'numpy' does not (compute in|support) "):
        Worker(prepare_repetition, dataclasses.replace(TINY, dtype="bfloat16"), "numpy", "cpu", None)


# --- tasks -----------------------------------------------------------------------------------------------------------


def workloads(case: Case, name: str, folder: Path | None = None) -> TransformersWorkloads | BackendWorkloads:
    return (TransformersWorkloads if name == "transformers" else BackendWorkloads)(case, name, "cpu", folder)


def test_all_encoders_compute_the_same(transformers: ModuleType) -> None:
    names = ("numpy", "torch", "transformers")
    numpy, torch, reference = (np.asarray(workloads(TINY, name).encoder()(40)()) for name in names)
    assert reference.shape == (1, 40, 32)
    for ours in (numpy, torch):
        assert np.abs(ours - reference).max() < 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize("beams", [1, 3])
def test_all_searches_return_the_same_ids_and_report_every_step(transformers: ModuleType, beams: int) -> None:
    case = Case("decoder", "tiny", "float32", ALL, 40, beams)
    written = {}
    for name in ("numpy", "torch", "transformers"):
        steps: list[None] = []
        search = workloads(case, name).decoder()
        with record("lm_head") as trace:
            first, again = (np.asarray(search(40)(partial(steps.append, None))).tolist() for _ in range(2))
        assert first == again
        assert name == "transformers" or trace["lm_head"].shape[:2] == (1, beams)
        assert len(steps) == 2 * 12
        written[name] = first
    assert written["numpy"] == written["torch"] == written["transformers"]


def test_all_texts_are_the_same(transformers: ModuleType) -> None:
    case = Case("texts", "tiny", "float32", ALL, 40, beams=2, texts=3)
    written = [np.asarray(workloads(case, name).texts()(40)()).tolist() for name in ("numpy", "torch", "transformers")]
    assert written[0] == written[1] == written[2]
    assert np.shape(written[0]) == (3, 65)


def test_a_process_starts_summarizes_and_ends(transformers: ModuleType) -> None:
    case = Case("start", "demo", "float32", ALL)
    for name in ("numpy", "transformers"):
        assert task_for(case, name, "cpu")(0) > 0.1


@pytest.mark.filterwarnings("ignore")  # of torch.compile
def test_a_compiled_encoder_computes_the_same(transformers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled eagerly: that the compiler is right is not tested here."""
    import torch

    compiled: list[Any] = []

    def keep(module: Any) -> Any:
        compiled.append(module)
        return module

    monkeypatch.setattr(torch, "compile", keep)
    names = ("transformers", "transformers-compiled")
    plain, other = (TransformersWorkloads(TINY, name, "cpu", None) for name in names)
    np.testing.assert_allclose(plain.encoder()(40)(), other.encoder()(40)(), rtol=1e-4)
    assert len(compiled) == 1


def test_all_loaders_read_the_same(transformers: ModuleType, checkpoint: Path) -> None:
    sums = [workloads(LOAD, name, checkpoint).load()(0)() for name in ("numpy", "torch", "transformers")]
    weights = PegasusXForConditionalGeneration.from_random(LOAD.config).state_dict()
    assert sums == pytest.approx([sum(float(tensor.sum()) for tensor in weights.values())] * 3, rel=1e-4)


def test_a_token_takes_the_median_interval_without_the_first_two() -> None:
    later = list(rng.uniform(1, 2, 7))
    assert median_interval(np.cumsum([5.0, 9.0, 8.0, *later]).tolist()) == pytest.approx(statistics.median(later))


def test_the_core_and_a_search_run_as_tasks_of_every_backend() -> None:
    pytest.importorskip("torch")
    for case in (Case("core", "tiny", "float32", ALL, 40), Case("decoder", "tiny", "float32", ALL, 40)):
        for name in ("torch", "numpy"):
            assert task_for(case, name, "cpu")(40) > 0


@pytest.mark.parametrize(("kind", "kernels"), [("encoder", "matrix_products"), ("load", "memory_reads")])
def test_the_machine_s_limit_is_the_best_of_its_libraries(
    kind: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"slow": iter([0.05, 0.06, 0.07]), "fast": iter([0.03, 0.01, 0.02])}
    monkeypatch.setattr(machine, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(machine, "timed", lambda call, _: next(seconds[call]))
    monkeypatch.setattr(machine, kernels, lambda *_: [(name, None, 10.0) for name in seconds])
    case = dataclasses.replace(TINY, kind=kind)
    assert work_of(case).amount / task_for(case, "machine", "cpu")(40) == pytest.approx(10 / 0.01)


def test_the_machine_s_kernels_do_the_work_that_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MATRIX_ROWS", (48, 0))
    monkeypatch.setattr(machine, "ARRAY_LENGTHS", (1000, 0))
    has_torch = importlib.util.find_spec("torch") is not None
    products, reads = machine.matrix_products("float32", "cpu"), machine.memory_reads("cpu")
    for kernels, work in ((products, 2 * 48**3), (reads, 4 * 1000)):
        assert len(kernels) == 1 + has_torch
        for call, synchronize, counted in kernels:
            assert counted == work
            call()
            synchronize()
    assert len(machine.matrix_products("bfloat16", "cpu")) == 2 * has_torch  # converted to float32, too


def test_timing_waits_for_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = pytest.importorskip("torch")
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append(device))
    timed(lambda: log.append("work"), synchronizer("transformers", "cuda:0"))
    assert log == ["cuda:0", "work", "cuda:0"]
    log.clear()
    cupy = SimpleNamespace(synchronize=lambda: log.append("cupy"))
    cupy.cuda = SimpleNamespace(Device=lambda: cupy)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    timed(lambda: log.append("work"), synchronizer("cupy", "cuda:0"))
    assert log == ["cupy", "work", "cupy"]


# --- memory ----------------------------------------------------------------------------------------------------------

on_linux = pytest.mark.skipif(not can_reset_peak(), reason="the kernel's peak memory is read from Linux's /proc")
COUNTER_LAG = 16 * MIB  # the kernel updates its counters in batches


@on_linux
def test_peak_memory_is_that_of_one_repetition() -> None:
    """In a process of its own: where earlier tests leave a gap in the heap, the C library fills it and keeps it."""
    sizes = (1, 96, 32, 64)
    with closing(Worker(bench_workers.allocates, TINY, sizes)) as worker:
        for size in sizes[1:]:
            _, peak = worker.run()
            assert (size - 1) * MIB < peak < size * MIB + COUNTER_LAG


@on_linux
def test_memory_that_a_repetition_leaves_allocated_counts_in_the_next() -> None:
    meter, kept = memory_meter("numpy", "cpu"), []
    for _ in range(2):
        meter.reset()
        kept.append(np.full(48 * MIB // 8, rng.random()))
    peak = meter.peak()
    assert peak is not None
    assert peak > 95 * MIB


@on_linux
def test_memory_that_a_library_keeps_from_its_first_use_counts() -> None:
    """Such as a second copy of the weights in a faster layout."""
    with closing(Worker(bench_workers.keeps_memory, TINY)) as worker:
        for _ in range(2):
            _, peak = worker.run()
            assert 47 * MIB < peak < 48 * MIB + COUNTER_LAG


def test_memory_on_a_gpu_is_that_of_the_library_s_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reserved memory before and after: recorded CUDA graphs keep theirs without reporting it as allocated."""
    torch: Any = pytest.importorskip("torch")
    state = {"reserved": 900, "most": 900}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: state.update(reserved=700))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: state["reserved"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: state["most"])
    meter = memory_meter("transformers", "cuda:0")
    state["most"] = 2100  # in the warm-up
    meter.reset()
    assert meter.peak() == 1400
    held = {"bytes": 500}
    pool = SimpleNamespace(total_bytes=lambda: held["bytes"], free_all_blocks=lambda: held.update(bytes=300))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(get_default_memory_pool=lambda: pool))
    meter = memory_meter("cupy", "cuda:0")
    held["bytes"] = 1000
    meter.reset()  # empties nothing: refilling the pool would take time
    assert meter.peak() == 700


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round() -> None:
    result = random_result(TINY)
    reference, torch = result.runs["transformers"], result.runs["torch"]
    ratios = sorted(mine / other for mine, other in zip(torch.seconds, reference.seconds, strict=True))
    assert result.ratio("torch") == (ratios[2], ratios[0], ratios[-1])
    assert result.ratio("transformers") is None
    assert result.ratio("machine") is None
    peaks = zip(torch.values("memory"), reference.values("memory"), strict=True)
    found = result.ratio("torch", "memory")
    assert found is not None
    assert found.median == statistics.median(mine / other for mine, other in peaks)


def test_a_failed_run_is_compared_over_its_own_rounds() -> None:
    result = random_result(TINY)
    del result.runs["torch"].seconds[2:]
    pairs = zip(result.runs["torch"].seconds, result.runs["transformers"].seconds, strict=False)
    found = result.ratio("torch")
    assert found is not None
    assert found.median == statistics.median(mine / other for mine, other in pairs)
    result.runs["torch"].seconds.clear()
    assert result.ratio("torch") is None


def test_rounds_of_a_loaded_machine_are_a_failure(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case is measured again by the same command."""
    steady = random_result(TINY)
    assert steady.unstable == []
    loaded = random_result(TINY)
    loaded.runs["torch"].seconds = [8.0, 8.1, 8.0, 11.9, 8.0]
    assert loaded.unstable == ["torch"]
    assert "- torch: its ratios differ too much between the rounds" in report(results_of(loaded))[-1]
    results = [loaded, steady]
    monkeypatch.setattr(runner, "run_case", lambda *_: results.pop(0))
    monkeypatch.setitem(SUITES, "quick", (TINY,))
    command = ("--suite", "quick", "--out", tmp_path / "bench.json", "--no-progress")
    first = run(*command)
    assert first.exit_code == 1
    assert first.stderr == "Error: the machine was loaded during encoder-tiny-40: run the command again\n"
    assert run(*command).exit_code == 0
    assert run(*command).exit_code == 0
    assert results == []


def test_a_share_is_that_of_the_machine_s_rate_in_the_same_round() -> None:
    result = random_result(TINY)
    pairs = zip(result.runs["machine"].seconds, result.runs["numpy"].seconds, strict=True)
    assert result.share("numpy") == statistics.median(bound / seconds for bound, seconds in pairs)
    rate = work_of(TINY).amount / statistics.median(result.runs["numpy"].seconds)
    assert summarize(results_of(result))["encoder-tiny-40"]["numpy"]["rate"] == rate
    result.runs["machine"].seconds.clear()
    assert result.share("numpy") is None


def test_aims_are_upper_limits_except_for_a_share() -> None:
    longer = dataclasses.replace(
        TINY, tokens=160, grows_from=40, aims=(Aim("torch", "growth", 9), Aim("torch", "share", 0))
    )
    short, long = random_result(TINY), random_result(longer, around=dict.fromkeys(ALL, 50.0))
    grown = statistics.median(long.runs["torch"].seconds) / statistics.median(short.runs["torch"].seconds)
    aims = summarize(results_of(short, long))["encoder-tiny-160"]["torch"]["aims"]
    assert [aim["reached"] for aim in aims] == [grown, long.share("torch")]
    assert [aim["met"] for aim in aims] == [grown <= 9, True]
    for metric, better in (("time", 0.449), ("memory", 0.449), ("growth", 0.449), ("share", 0.451)):
        aim = Aim("torch", metric, 0.45)
        assert (aim.is_met(0.45), aim.is_met(better), aim.is_met(0.9 - better), aim.is_met(None)) == (
            True,
            True,
            False,
            False,
        )
    assert growth([long], long, "torch") is None
    peaks = [statistics.median(result.runs["torch"].values("memory")) for result in (short, long)]
    assert growth([short, long], long, "torch", "memory") == peaks[1] / peaks[0]


# --- the results file ------------------------------------------------------------------------------------------------


def test_a_file_holds_results_and_metrics(tmp_path: Path) -> None:
    case = dataclasses.replace(TINY, aims=(Aim("torch", "time", 0.9), Aim("numpy", "time", 0.01)))
    results = results_of(random_result(case))
    results.cases[case.name].runs["numpy"].problem = "it ran out of memory"
    results.extra["tests"] = {"returncode": 0}
    path = tmp_path / "bench.json"
    write_results(path, results)
    assert read_results(path) == results
    summary = json.loads(path.read_text())["summary"][case.name]
    found = results.cases[case.name].ratio("torch")
    assert found is not None
    assert summary["torch"]["time_ratio"] == found._asdict()
    assert [aim["met"] for name in ("torch", "numpy") for aim in summary[name]["aims"]] == [True, False]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("cpu-*.json")), ids=lambda path: path.stem)
def test_the_published_results_can_be_read(path: Path) -> None:
    results = read_results(path)
    assert {*results.cases} <= {case.name for case in SUITES["cpu"]}
    assert summarize(results) == json.loads(path.read_text())["summary"]
    assert not any(result.unstable for result in results.cases.values())


def test_the_tables_of_the_pages_are_those_of_the_results() -> None:
    pages = runpy.run_path(str(RESULTS.parent / "tables.py"))
    for path in pages["PAGES"]:
        page = path.read_text(encoding="utf-8")
        assert pages["PLACE"].search(page)
        assert pages["filled"](page) == page, "run python benchmarks/tables.py"
        changed = page.replace("<!-- end of table -->", "more\n<!-- end of table -->")
        assert pages["filled"](changed) == page


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cases that were run, with random results in place of measurements."""
    names: list[str] = []

    def run_case(case: Case, *_: Any) -> CaseResult:
        if "8-beams" in case.name:
            raise KeyboardInterrupt
        names.append(case.name)
        return random_result(case)

    monkeypatch.setattr(runner, "run_case", run_case)
    monkeypatch.setattr("pegasusx_ref.cli.bench.facts", lambda: FACTS)
    monkeypatch.setattr("pegasusx_ref.cli.bench.load_average", lambda: 0.1)
    monkeypatch.setattr("pegasusx_ref.cli.bench.usable_cores", lambda: 2)
    return names


CASES = [dataclasses.replace(TINY, tokens=tokens) for tokens in (40, 80, 160)]


def test_a_resumed_run_measures_the_missing_cases(measured: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    begun = resume_results(path, SETTINGS, FACTS, "a command")
    assert [result.case for result in run_cases(CASES[:2], begun, path, "cpu")] == CASES[:2]
    resumed = resume_results(path, SETTINGS, FACTS, "a command")
    assert resumed == begun
    assert [result.case for result in run_cases(CASES, resumed, path, "cpu")] == CASES[2:]
    assert measured == [case.name for case in CASES]
    assert list(read_results(path).cases) == measured
    assert not resume_results(path, SETTINGS, FACTS, "a command", fresh=True).cases


def test_changed_and_killed_cases_are_measured_again(measured: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    results = results_of(*map(random_result, CASES))
    runs = [results.cases[case.name].runs for case in CASES]
    runs[0]["torch"].problem = "ended by SIGKILL, usually because memory ran out"
    runs[1]["torch"].problem = "torch is not installed"  # nor will it be the next time
    changed = dataclasses.replace(CASES[2], aims=(Aim("torch", "time", 0.5),))
    cases = [*CASES[:2], changed]
    assert [result.case for result in run_cases(cases, results, path, "cpu")] == [CASES[0], changed]
    assert read_results(path).cases[changed.name].case.aims


def test_a_case_that_nothing_ran_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.json"
    failed = CaseResult(TINY, {name: Run(problem=f"no {name} here") for name in ALL})
    monkeypatch.setattr(runner, "run_case", lambda *_: failed)
    with pytest.raises(
        InputError, match=r"no implementation of encoder-tiny-40 ran on cuda:0: .*; numpy: no numpy here"
    ):
        list(run_cases([TINY], results_of(), path, "cuda:0"))
    assert not path.exists()


def test_code_that_changes_during_a_run_ends_it(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["before", "before", "after"])
    monkeypatch.setattr(runner, "code_digest", lambda: next(digests))
    path = tmp_path / "bench.json"
    with pytest.raises(InputError, match="the code changed during encoder-tiny-80"):
        list(run_cases(CASES[:2], results_of(), path, "cpu"))
    assert list(read_results(path).cases) == ["encoder-tiny-40"]


def test_a_file_without_cases_fits_any_conditions(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_results(path, results_of())
    assert resume_results(path, SETTINGS | {"device": "cuda:0"}, FACTS, "a command").settings["device"] == "cuda:0"


def test_an_error_in_writing_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/bench\.json: cannot be written: File exists"):
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
def test_a_file_measured_under_other_conditions_is_refused(
    settings: dict[str, Any], facts: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "bench.json"
    write_results(path, results_of(random_result(TINY)))
    with pytest.raises(InputError, match=rf"measured under other conditions \(.*{said}.*\): use --fresh to start anew"):
        resume_results(path, SETTINGS | settings, FACTS | facts, "a command")


DAMAGES: dict[str, Callable[[Any], object]] = {
    "no settings": lambda entries: entries["settings"].clear(),
    "settings that are a list": lambda entries: entries.update(settings=[1]),
    "no facts": lambda entries: entries["facts"].clear(),
    "times that are words": lambda entries: entries["cases"]["encoder-tiny-40"]["runs"]["torch"].update(seconds="abc"),
    "an unknown dtype": lambda entries: entries["cases"]["encoder-tiny-40"]["case"].update(dtype="int9"),
    "an unknown model": lambda entries: entries["cases"]["encoder-tiny-40"]["case"].update(preset="huge"),
}
OTHER_FILES = {"": "", "a list": "[1]", "another format": '{"format": 0}', "no cases": '{"format": 1}'}


@pytest.mark.parametrize("damage", [*DAMAGES, *OTHER_FILES])
def test_a_damaged_or_unrelated_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_results(path, results_of(random_result(TINY)))
    entries = json.loads(path.read_text())
    DAMAGES.get(damage, bool)(entries)
    path.write_text(OTHER_FILES.get(damage, json.dumps(entries)))
    with pytest.raises(InputError, match=r"bench\.json: not a results file of pegasusx-ref bench \(.+\): use --fresh"):
        read_results(path)


@pytest.mark.parametrize(
    ("part", "counts"),
    [
        ("benchmarking/workers.py", True),
        ("benchmarking/tasks/timing.py", True),
        ("study/costs.py", True),
        ("encoder.py", True),
        ("benchmarking/report.py", False),
        ("cli/bench.py", False),
        ("study/pictures/figures.py", False),
    ],
)
def test_the_digest_covers_code_that_computes_or_measures(
    part: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setitem(code_digest.__globals__, "find_spec", lambda _: spec)
    digests = []
    for content in ("a", "b"):
        (tmp_path / part).write_text(content)
        digests.append(code_digest())
    assert (digests[0] != digests[1]) == counts


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "ONEDNN_MAX_CPU_ISA", "NPY_DISABLE_CPU_FEATURES"])
def test_variables_that_configure_libraries_are_facts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise WorkerError("torch does not load")

    monkeypatch.setattr("pegasusx_ref.benchmarking.facts.Worker", fail)
    monkeypatch.setattr("pegasusx_ref.benchmarking.facts.code_digest", lambda: "0123456789ab")
    before = facts()
    assert before["torch"] == {}
    monkeypatch.setenv(name, "1")
    assert differences(before, facts()) == [f"environment: {name}: None then, 1 now"]


def test_facts_are_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegasusx_ref.benchmarking.facts.code_digest", lambda: "0123456789ab")
    found = facts()
    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "TRUE")  # as threadpoolctl does
    assert differences(found, json.loads(json.dumps(facts()))) == []
    assert found["versions"]["numpy"] == np.__version__
    assert found["machine"]["cores"] >= 1
    assert found["environment"].get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")
    assert bool(found["torch"]) == (importlib.util.find_spec("torch") is not None)


# --- report and plot -------------------------------------------------------------------------------------------------


def suite_results(suite: str) -> Results:
    around = {"transformers": 16.0, "torch": 0.9, "numpy": 0.9, "cupy": 0.7, "machine": 0.4}
    return results_of(*(random_result(case, around=around) for case in SUITES[suite]))


@pytest.mark.parametrize("suite", SUITES)
def test_a_report_fits_a_terminal(suite: str) -> None:
    lines = report(suite_results(suite))
    assert max(map(len, lines)) <= 124, max(lines, key=len)  # four implementations in the suite "cuda"


def test_tables_hold_medians_ratios_ranges_and_aims() -> None:
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
    rates, time_table, memory_table = (table for _, table in tables(results, summarize(results)))
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
    per_second = [f"{amount / seconds / 1e3:.0f} kFLOP/s" for seconds in (4.0, 16.0, 8.0, 9.6)]
    expected = [per_second[0], per_second[1], "30 %", per_second[2], "50 %", per_second[3], "50 %", "0.45 ✓"]
    assert rates.rows[0] == ["encoder-tiny-40", *expected]
    assert "Aims met: 2 of 3." in report(results)
    assert as_markdown(time_table)[:2] == [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * 9}"]


def test_a_failure_is_in_the_table_and_listed_once_below_it() -> None:
    results = results_of(random_result(TINY), random_result(dataclasses.replace(TINY, tokens=80)))
    for result in results.cases.values():
        result.runs["torch"] = Run(problem="torch is not installed")
    lines = report(results)
    assert lines[-1] == "- torch: torch is not installed (encoder-tiny-40, encoder-tiny-80)"
    _, row, *_ = [line for line in lines if line.startswith("encoder-tiny-40 ")]  # of time, after that of rates
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


def test_the_plot_has_a_line_per_implementation_and_separate_labels(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = suite_results("cpu")
    results.cases["encoder-large-16384"].runs["numpy"].seconds[0] *= 50
    figure = plots.scaling_figure(results)
    time_axes, memory_axes = figure.axes
    lengths = {len(container[0].get_xdata()) for container in time_axes.containers}
    assert lengths == {4}
    assert len(time_axes.containers) == 4
    assert len(memory_axes.containers) == 3
    series = plots.longest_series(result.case for result in results.cases.values())
    seconds = [second for case in series for run in results.cases[case.name].runs.values() for second in run.seconds]
    low, high = time_axes.get_ylim()
    assert low < min(seconds) <= max(seconds) < high
    for axes in figure.axes:
        heights = sorted(text.get_position()[1] for text in axes.texts)
        assert np.diff(heights).min() >= plots.LABEL_DISTANCE - 1e-9
    figure.savefig(tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_the_plot_omits_rounds_without_memory() -> None:
    pytest.importorskip("matplotlib")
    results = suite_results("quick")
    results.cases["encoder-base-256"].runs["numpy"].memory[0] = 0
    _, memory_axes = plots.scaling_figure(results).axes
    assert memory_axes.get_ylim()[0] > 0


def test_a_plot_needs_two_lengths() -> None:
    with pytest.raises(InputError, match="encoder cases of one model at two lengths"):
        plots.scaling_figure(results_of(random_result(TINY)))


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["bench", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_measures_prints_plots_and_resumes(measured: list[str], tmp_path: Path) -> None:
    out, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    result = run("--suite", "quick", "--out", out, "--case", "encoder-base-256")
    assert result.exit_code == 0
    first, _, third, *_ = result.stdout.splitlines()
    assert first.startswith("Suite quick on cpu, ")
    assert third == "openblas 0.3 for Haswell, 2 threads; OMP_NUM_THREADS=2."
    assert result.stderr.startswith("case 1 of 1, encoder-base-256: transformers ")
    result = run("--suite", "quick", "--out", out, "--plot", picture, "--no-progress")
    assert (result.exit_code, result.stderr) == (0, "")
    assert measured == [case.name for case in SUITES["quick"]]
    assert picture.stat().st_size > 10_000
    shown = run("--show", "--out", out, "--markdown")
    assert shown.exit_code == 0
    assert "| encoder-base-1024 | " in shown.stdout
    assert len(measured) == len(SUITES["quick"])


def test_a_high_load_is_noted(measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegasusx_ref.cli.bench.load_average", lambda: 1.04)
    result = run("--suite", "quick", "--out", tmp_path / "bench.json", "--no-progress")
    assert result.exit_code == 0
    assert result.stderr == "Note: load average 1.0 on 2 cores: times may be long and ratios unreliable\n"


def test_without_a_measurement_of_this_package_the_exit_code_is_1(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_case(case: Case, *_: Any) -> CaseResult:
        runs = {name: Run(problem="it is not installed") for name in case.implementations}
        return CaseResult(case, runs | {"machine": random_run(5, 4.0)})

    monkeypatch.setattr(runner, "run_case", run_case)
    command = ("--suite", "quick", "--case", "load-tiny", "--out", tmp_path / "bench.json", "--no-progress")
    result = run(*command)
    assert (result.exit_code, result.stderr) == (1, "Error: no measurement of this package: load-tiny\n")
    assert "numpy: it is not installed (load-tiny)" in result.stdout
    assert run(*command, "--show").exit_code == 0


def test_ctrl_c_keeps_the_finished_cases(measured: list[str], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = run("--suite", "cpu", "--out", out)
    assert (result.exit_code, result.stdout) == (130, "")
    *_, noted, last = result.stderr.splitlines()
    assert noted == f"Note: 8 cases are in {out}; run the same command to resume"
    assert last == "Interrupted"
    assert list(read_results(out).cases) == measured == [case.name for case in SUITES["cpu"][:8]]


def test_list_prints_cases_and_aims_and_runs_nothing(measured: list[str]) -> None:
    result = run("--list")
    assert result.exit_code == 0
    assert "share ≥ 0.85 torch, 0.78 numpy; memory ≤ 0.35 torch, 0.5 numpy; growth ≤" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == [case.name for case in SUITES["cpu"]]
    assert measured == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "huge"), "'huge' is not one of 'cpu', 'quick', 'cuda'"),
        (
            ("--case", "encoder-large-17"),
            "--case 'encoder-large-17' is not in the suite 'cpu': choose from encoder",
        ),
        (("--out", "corrupt.json/bench.json"), "--out corrupt.json/bench.json: the folder corrupt.json does not exist"),
        (("--device", "banana"), "--device 'banana' is not a device: choose cpu, cuda:0, cuda:1, …"),
        (("--case", "load-large", "--plot", "bench.png"), "nothing to plot: the plot needs encoder cases of one"),
        (("--tokens", "40", "--plot", "bench.png"), "nothing to plot: the plot needs encoder cases of one model"),
        (("--show", "--out", "none.json"), "none.json: cannot be read: No such file or directory: use --fresh"),
        (
            ("--show", "--out", "corrupt.json"),
            "corrupt.json: not a results file of pegasusx-ref bench (",
        ),
        (("--out", "corrupt.json"), "use --fresh to start anew or --out to name another file"),
        (("--plot", "bench.txt"), "--plot bench.txt: extension '.txt' is not an image format"),
        (("--rounds", "0"), "0 is not in the range x>=1"),
    ],
)
def test_bad_usage_is_refused_in_one_line(
    arguments: tuple[str, ...], message: str, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corrupt.json").write_text('{"format": 1, "cas')
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
    assert measured == []


def test_without_matplotlib_the_extra_is_named_before_anything_runs(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("--out", tmp_path / "bench.json", "--plot", tmp_path / "bench.png")
    assert result.exit_code == 2
    assert "pip install 'pegasusx-ref[study]'" in result.stderr
    assert measured == []


# --- gpu_check.py ----------------------------------------------------------------------------------------------------


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


def test_gpu_check_runs_the_tests_once_and_resumes_the_suite(
    gpu_check: Any, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "gpu.json"
    tests = iter([{"returncode": 0}])
    monkeypatch.setattr(gpu_check, "run_tests", lambda: next(tests))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main()  # in the middle of the suite
    assert read_results(out).extra == {"tests": {"returncode": 0}}
    monkeypatch.setattr(runner, "run_case", lambda case, *_: random_result(case))
    gpu_check.main()
    assert list(read_results(out).cases) == [case.name for case in SUITES["cuda"]]
    assert "encoder-large-16384-bf16" in capsys.readouterr().out
