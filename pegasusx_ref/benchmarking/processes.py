"""Talking to a worker: starting its process, asking it for a repetition, and saying why it died."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, NamedTuple, Self

from pegasusx_ref.benchmarking.results import KILLED

COMMAND = (sys.executable, "-P", "-m", "pegasusx_ref.benchmarking.worker")


class WorkerError(Exception):
    """A worker that died or raised, with the reason."""


class Repetition(NamedTuple):
    """What a worker says of one repetition.

    Attributes:
        seconds: that it took, of decoding a token; by the machine's limit, that it would take at least.
        memory: bytes at its peak above what was there before; None where that is not known.
    """

    seconds: float
    memory: int | None


class WorkerProcess:
    """A process that waits for one repetition to be asked of it after the other.

    Args:
        wish: what it is to make ready.
        command: that starts it.

    Raises:
        WorkerError: it could not make ready what was wished for.
    """

    def __init__(self, wish: dict[str, Any], command: tuple[str, ...] = COMMAND) -> None:
        # It finds the same packages as this process, wherever that was started.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for this process, which ends the worker
        )
        try:
            self.facts: dict[str, Any] = self._ask(wish).get("facts", {})
        except BaseException:
            self.close()
            raise

    def repeat(self) -> Repetition:
        """Have the work done once more.

        Raises:
            WorkerError: it died or raised.
        """
        reply = self._ask({"repeat": True})
        return Repetition(reply["seconds"], reply["memory"])

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._reason()) from None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._reason())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def _reason(self) -> str:
        """Say why the process has ended."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return f"{KILLED}{name}" + (", as systems do where memory runs out" if name == "SIGKILL" else "")
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return f"ended with exit code {code}" + (f": {said[-1]}" if said else "")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what it was never told
        self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
