"""What another thread may do between two lines of a function: done before each line in turn, no run is lucky."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any


@contextmanager
def interrupted(
    functions: list[Callable[..., Any]],
    line: int,
    interfere: Callable[[], None],
    may_interfere: Callable[[], bool] = lambda: True,
) -> Iterator[SimpleNamespace]:
    """Call `interfere` before a line that the functions execute in the block.

    Args:
        functions: whose lines are counted.
        line: number of the executed line, from 1.
        interfere: what the other thread does; its own lines are not counted.
        may_interfere: False where the other thread would wait; such lines are not counted.

    Returns:
        A context manager that yields `num_lines`, the number of lines so far.
    """
    codes = [getattr(function, "__code__") for function in functions]  # noqa: B009 - Callable does not declare it
    seen, is_interfering = SimpleNamespace(num_lines=0), False

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal is_interfering
        if frame.f_code in codes and event == "line" and not is_interfering and may_interfere():
            is_interfering = True
            seen.num_lines += 1
            if seen.num_lines == line:
                interfere()
            is_interfering = False
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


# The code that writes checkpoints.
WRITERS = ("files/writing.py", "checkpoint/saving.py", "checkpoint/safetensors_writer.py")


@contextmanager
def killed_before(line: int) -> Iterator[None]:
    """End the process without any clean-up before a line of the writing code is executed in the block.

    Args:
        line: number of the executed line, from 1.
    """
    seen = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(WRITERS):
            return None
        seen += event == "line"
        if seen == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(count)
    yield
    sys.settrace(None)
