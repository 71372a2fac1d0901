"""The work itself, as each implementation does it."""

from collections.abc import Callable
from pathlib import Path

from pegasusx_ref.benchmarking.cases import MACHINE, Case
from pegasusx_ref.benchmarking.tasks.core import core_task
from pegasusx_ref.benchmarking.tasks.decoder import decoder_task
from pegasusx_ref.benchmarking.tasks.encoder import encoder_task
from pegasusx_ref.benchmarking.tasks.load import load_task
from pegasusx_ref.benchmarking.tasks.machine import machine_task

Task = Callable[[int], float]  # does the work for so many source tokens, and says how many seconds it took


def task_of(case: Case, implementation: str, device: str, folder: str | None = None) -> Task:
    """Make ready what an implementation does in a case: load libraries, build its model.

    Args:
        case: what is measured.
        implementation: whose work.
        device: "cpu", "cuda:0", ….
        folder: a checkpoint of the case's shape, to be loaded.

    Raises:
        PegasusXError: the implementation cannot run here.
    """
    if implementation == MACHINE:
        return machine_task(case, device)
    if case.kind == "load":
        return load_task(case, implementation, device, Path(folder or ""))
    makers = {"encoder": encoder_task, "decoder": decoder_task, "core": core_task}
    return makers[case.kind](case, implementation, device)
