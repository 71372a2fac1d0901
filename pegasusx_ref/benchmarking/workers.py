"""A worker: a process of its own that prepares a task once and runs it on request."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from pegasusx_ref.benchmarking.results import KILLED
from pegasusx_ref.errors import PegasusXError


class WorkerError(Exception):
    """A worker raised an error or died; the message gives the reason."""


class Worker:
    """A spawned process that prepares a task and waits for requests to run it; only the main thread can start one.

    Args:
        prepare: a function that the process can import; it returns the task.
        args: of `prepare`.

    Raises:
        WorkerError: `prepare` raised an error or the process died.
    """

    def __init__(self, prepare: Callable[..., Callable[[], Any]], *args: Any) -> None:
        context = get_context("spawn")  # a forked process would share this one's memory and library threads
        self._connection, other_end = context.Pipe()
        self._output = NamedTemporaryFile(prefix="pegasusx-ref-bench-")  # noqa: SIM115 - closed with the process
        self._process = context.Process(target=serve, args=(other_end, self._output.name, prepare, args), daemon=True)
        resource_tracker.ensure_running()  # its start, otherwise with the first worker's, unblocks SIGINT
        # Ctrl-C is for this process, which ends the worker: the worker inherits that it is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        other_end.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def run(self) -> Any:
        """Run the task once and return its result.

        Raises:
            WorkerError: the task raised an error or the process died.
        """
        with suppress(OSError):  # of a dead process; the reason follows
            self._connection.send(None)
        return self._receive()

    def _receive(self) -> Any:
        try:
            outcome = self._connection.recv()
        except (EOFError, OSError):
            raise WorkerError(self._exit_reason()) from None
        if isinstance(outcome, WorkerError):
            raise outcome
        return outcome

    def _exit_reason(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            name = signal.Signals(-code).name
            return f"{KILLED}{name}" + (", usually because memory ran out" if name == "SIGKILL" else "")
        printed = Path(self._output.name).read_text("utf-8", errors="replace").strip().splitlines()
        return f"ended with exit code {code}" + (f": {printed[-1]}" if printed else "")

    def close(self) -> None:
        """End the process, even in the middle of its task."""
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._output.close()


def serve(
    connection: Connection, output: str, prepare: Callable[..., Callable[[], Any]], args: tuple[Any, ...]
) -> None:
    """Prepare the task in the worker, then run it for each request until the connection is closed."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):  # what libraries print, in C as well: the command's stdout is for its results
        os.dup2(file, stream)
    task = attempt(prepare, *args)
    connection.send(task if isinstance(task, WorkerError) else None)
    with suppress(EOFError):
        while True:
            connection.recv()
            connection.send(attempt(task))


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a call, or a WorkerError with the first line of the error that it raised."""
    try:
        return function(*args)
    except Exception as error:  # any error of a library concerns this implementation only
        message = str(error).strip().partition("\n")[0]
        return WorkerError(message if isinstance(error, PegasusXError) else f"{type(error).__name__}: {message}")
