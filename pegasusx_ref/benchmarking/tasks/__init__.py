"""The tasks: each implementation's workload in a case, prepared once and timed at each repetition."""

from collections.abc import Callable
from pathlib import Path

from pegasusx_ref.benchmarking.cases import COMPILED, MACHINE, TRANSFORMERS, Case
from pegasusx_ref.benchmarking.tasks.backends import BackendWorkloads
from pegasusx_ref.benchmarking.tasks.machine import machine_task
from pegasusx_ref.benchmarking.tasks.timing import seconds_per_step, synchronizer, timed
from pegasusx_ref.benchmarking.tasks.transformers import TransformersWorkloads

Task = Callable[[int], float]  # runs a workload for a number of source tokens and returns the seconds that it took


def task_for(case: Case, implementation: str, device: str, folder: Path | None = None) -> Task:
    """Prepare an implementation's task: import libraries and build the model.

    Args:
        case: whose workload is run.
        implementation: that runs it.
        device: "cpu", "cuda:0", ….
        folder: the checkpoint of a "load" case.

    Raises:
        PegasusXError: the implementation cannot run here.
    """
    if implementation == MACHINE:
        return machine_task(case, device)
    workloads = TransformersWorkloads if implementation in (TRANSFORMERS, COMPILED) else BackendWorkloads
    prepare = getattr(workloads(case, implementation, device, folder), case.kind)()
    synchronize, measure = synchronizer(implementation, device), seconds_per_step if case.kind == "decoder" else timed
    return lambda tokens: measure(prepare(tokens), synchronize)
