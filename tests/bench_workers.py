"""Functions that tests of `pegasusx-ref bench` run in spawned workers, which import them by name."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np

from pegasusx_ref.benchmarking import runner
from pegasusx_ref.benchmarking.cases import Case

MIB = 2**20


def exits() -> Callable[[], Any]:
    def task() -> None:
        print("the library is broken", file=sys.stderr, flush=True)
        os._exit(3)

    return task


def dies_of(number: int) -> Callable[[], Any]:
    return lambda: os.kill(os.getpid(), number)


def raises(error: Exception) -> Callable[[], Any]:
    def task() -> None:
        raise error

    return task


def fails_to_prepare() -> Callable[[], Any]:
    raise ModuleNotFoundError("No module named 'nowhere'")


def never_ends() -> Callable[[], Any]:
    return threading.Event().wait


def prints() -> Callable[[], Any]:
    def task() -> float:
        print("stray")
        os.write(1, b"stray too\n")
        os.system("echo and stray")
        return 0.25

    return task


def sigint_is_blocked() -> Callable[[], Any]:
    return lambda: signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def allocates(case: Case, sizes: Sequence[int]) -> Callable[[], Any]:
    """Prepare a repetition of a task that allocates and frees one size after another, in MiB; the first warms it up."""
    remaining = iter(sizes)

    def task(tokens: int) -> float:
        return float(np.full(next(remaining) * MIB // 8, 0.25).mean())

    return repetition_of(task, case)


def keeps_memory(case: Case) -> Callable[[], Any]:
    """Prepare a repetition of a task that allocates 48 MiB at its first run and keeps them."""
    kept: list[np.ndarray] = []

    def task(tokens: int) -> float:
        if not kept:
            kept.append(np.ones(48 * MIB // 8))
        return 0.25

    return repetition_of(task, case)


def repetition_of(task: Callable[[int], float], case: Case) -> Callable[[], Any]:
    """Prepare a repetition of a task in place of the case's."""
    with patch.object(runner, "task_for", lambda *_: task):
        return runner.prepare_repetition(case, "numpy", "cpu", None)
