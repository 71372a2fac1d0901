"""Rounds: all implementations of a case wait side by side, and are asked for one repetition after the other."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from pegasusx_ref.benchmarking.cases import Case
from pegasusx_ref.benchmarking.facts import digest_of_code
from pegasusx_ref.benchmarking.processes import WorkerError, WorkerProcess
from pegasusx_ref.benchmarking.results import CaseResult, Results, Run
from pegasusx_ref.benchmarking.storing import write_results
from pegasusx_ref.benchmarking.tasks.load import checkpoint_of
from pegasusx_ref.errors import InputError

MANY, FEW = 5, 3  # rounds: so many, or few where a repetition takes LONG
LONG = 20.0  # seconds
PAUSE = 0.25  # seconds before each repetition: the threads of the one before wait for more work before they sleep

Start = Callable[[dict[str, Any]], Any]  # a worker, or what stands in for one
Watch = Callable[[str, str, int, int], Any]  # the case's name, what is done now, repetitions done, repetitions in all


def measured(
    cases: Iterable[Case],
    results: Results,
    path: Path,
    device: str,
    rounds: int | None = None,
    watch: Watch = lambda *_: None,
) -> Iterator[CaseResult]:
    """Measure the cases that a file does not have yet, or only cut short, and write the file after each.

    Args:
        cases: what is to be measured.
        results: what the file has.
        path: the file.
        device: "cpu", "cuda:0", ….
        rounds: repetitions of each implementation; where None five, or three of work that takes long.
        watch: is told what is going on.

    Returns:
        An iterator over the results, each once it is in the file.

    Raises:
        InputError: nobody could run, the code has changed meanwhile, or the file cannot be written.
    """
    code = digest_of_code()
    for case in cases:
        known = results.cases.get(case.name)
        if known is not None and known.case == case and not known.is_cut_short:
            continue
        result = run_case(case, device, rounds, watch)
        if not any(run.seconds for run in result.runs.values()):
            why = "; ".join(f"{who}: {run.problem}" for who, run in result.runs.items())
            raise InputError(f"nobody could run {case.name} on {device}: {why}")
        if digest_of_code() != code:
            raise InputError(f"the code has changed while {case.name} was measured: start again when it is at rest")
        results.cases[case.name] = result
        write_results(path, results)
        yield result


def run_case(
    case: Case,
    device: str,
    rounds: int | None = None,
    watch: Watch = lambda *_: None,
    start: Start = WorkerProcess,
) -> CaseResult:
    """Measure one case, round after round; who dies or raises is out of it from there on.

    Args:
        case: what is to be measured.
        device: "cpu", "cuda:0", ….
        rounds: see `measured`.
        watch: see `measured`.
        start: makes a worker.
    """
    runs = {name: Run() for name in case.implementations}
    with ExitStack() as stack:
        watch(case.name, "is being prepared", 0, 1)
        folder = stack.enter_context(checkpoint_of(case) if case.kind == "load" else nullcontext())
        wish = {"case": dataclasses.asdict(case), "device": device, "folder": str(folder) if folder else None}
        workers = {}
        for name in case.implementations:
            watch(case.name, f"{name} makes ready", 0, 1)
            try:
                workers[name] = stack.enter_context(start(wish | {"implementation": name}))
            except WorkerError as error:
                runs[name].problem = str(error)
        wanted, done, slowest = rounds or MANY, 0, 0.0
        while done < wanted:
            for i, name in enumerate(in_turn(list(workers), done)):
                watch(case.name, f"round {done + 1}, {name}", done * len(runs) + i, wanted * len(runs))
                time.sleep(PAUSE)
                started = time.perf_counter()
                try:
                    seconds, memory = workers[name].repeat()
                except WorkerError as error:
                    runs[name].problem = str(error)
                    workers.pop(name).close()  # its memory is for the others
                    continue
                slowest = max(slowest, time.perf_counter() - started)
                runs[name].seconds.append(seconds)
                runs[name].memory.append(memory)
            done += 1
            if rounds is None and slowest > LONG and done <= FEW:
                wanted = FEW
    return CaseResult(case, runs)


def in_turn(names: Sequence[str], number: int) -> Sequence[str]:
    """Give the order of a round: every other one backwards, so that a drift of the machine favours nobody."""
    return names if number % 2 == 0 else names[::-1]
