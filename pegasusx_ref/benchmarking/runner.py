"""Rounds: every implementation of a case has a worker, and the workers take turns, one repetition each."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pegasusx_ref.benchmarking.cases import COMPILED, MACHINE, Case
from pegasusx_ref.benchmarking.facts import code_digest
from pegasusx_ref.benchmarking.memory import NO_METER, memory_meter
from pegasusx_ref.benchmarking.results import CaseResult, Results, Run
from pegasusx_ref.benchmarking.storage import write_results
from pegasusx_ref.benchmarking.tasks import task_for
from pegasusx_ref.benchmarking.workers import Worker, WorkerError
from pegasusx_ref.errors import InputError
from pegasusx_ref.model import PegasusXForConditionalGeneration

ROUNDS, FEW_ROUNDS = 5, 3  # few where a repetition takes longer than LONG
LONG = 20.0  # seconds
PAUSE = 0.25  # seconds before a repetition, in which the threads of the previous one stop waiting actively
WARM_UP_TOKENS = 1024  # on a CPU; what a library sets up at its first use does not depend on the length there

Progress = Callable[
    [str, str, int, int], Any
]  # the case's name, the current step, repetitions done, repetitions in all


def run_cases(
    cases: Iterable[Case],
    results: Results,
    path: Path,
    device: str,
    rounds: int | None = None,
    on_progress: Progress = lambda *_: None,
) -> Iterator[CaseResult]:
    """Measure the cases that are missing from a file, were killed or disturbed, and write the file after each.

    Args:
        cases: to be measured.
        results: of the file.
        path: of the file.
        device: "cpu", "cuda:0", ….
        rounds: repetitions of each implementation; None means 5, or 3 where one takes longer than 20 seconds.
        on_progress: called before each step.

    Returns:
        An iterator over the new results, each after it was written.

    Raises:
        InputError: no implementation ran, or the code changed during the run.
        OutputError: the file cannot be written.
    """
    digest = code_digest()
    for case in cases:
        known = results.cases.get(case.name)
        if known is not None and known.case == case and not known.was_killed and not known.unstable:
            continue
        result = run_case(case, device, rounds, on_progress)
        if not any(run.seconds for run in result.runs.values()):
            reasons = "; ".join(f"{name}: {run.problem}" for name, run in result.runs.items())
            raise InputError(f"no implementation of {case.name} ran on {device}: {reasons}")
        if code_digest() != digest:
            raise InputError(f"the code changed during {case.name}: start again when it no longer changes")
        results.cases[case.name] = result
        write_results(path, results)
        yield result


def run_case(
    case: Case,
    device: str,
    rounds: int | None = None,
    on_progress: Progress = lambda *_: None,
    start: Callable[..., Any] = Worker,
) -> CaseResult:
    """Measure one case; an implementation that fails takes no further part. For the arguments see `run_cases`."""
    runs = {name: Run() for name in case.implementations}
    with ExitStack() as stack:
        on_progress(case.name, "preparing", 0, 1)
        folder = None
        if case.kind == "load":
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="pegasusx-ref-bench-")))
            PegasusXForConditionalGeneration.from_random(case.config).save_pretrained(folder)
        workers = {}
        for name in case.implementations:
            on_progress(case.name, f"starting {name}", 0, 1)
            try:
                workers[name] = start(prepare_repetition, case, name, device, folder)
            except WorkerError as error:
                runs[name].problem = str(error)
            else:
                stack.callback(workers[name].close)
        planned, done, slowest = rounds or ROUNDS, 0, 0.0
        while done < planned:
            for i, name in enumerate(round_order(list(workers), done)):
                on_progress(case.name, f"round {done + 1}, {name}", done * len(runs) + i, planned * len(runs))
                time.sleep(PAUSE)
                started = time.perf_counter()
                try:
                    seconds, memory = workers[name].run()
                except WorkerError as error:
                    runs[name].problem = str(error)
                    workers.pop(name).close()  # frees its memory for the others
                    continue
                slowest = max(slowest, time.perf_counter() - started)
                runs[name].seconds.append(seconds)
                runs[name].memory.append(memory)
            done += 1
            if rounds is None and slowest > LONG and done <= FEW_ROUNDS:
                planned = FEW_ROUNDS
    return CaseResult(case, runs)


def round_order(names: Sequence[Any], number: int) -> Sequence[Any]:
    """Return the order of a round: reversed in every other one, so that a drift of the machine averages out."""
    return names if number % 2 == 0 else names[::-1]


def prepare_repetition(
    case: Case, implementation: str, device: str, folder: Path | None
) -> Callable[[], tuple[float, int | None]]:
    """Build and warm up a task, in a worker.

    Returns:
        A function that runs the task once and returns its seconds and its peak memory in bytes.
    """
    task = task_for(case, implementation, device, folder)
    # From here on memory counts: a second copy of the weights that a library makes at its first use is included.
    is_elsewhere = implementation == MACHINE or case.kind == "start"
    meter = NO_METER if is_elsewhere else memory_meter(implementation, device)
    # On a GPU what is set up depends on the length, and a full run is quick; torch.compile compiles for a length.
    depends_on_length = device.startswith("cuda") or implementation == COMPILED
    task(case.tokens if depends_on_length else min(case.tokens, WARM_UP_TOKENS))

    def repetition() -> tuple[float, int | None]:
        meter.reset()
        return task(case.tokens), meter.peak()

    return repetition
