"""Signals that let a long run end in order."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 1.0  # seconds for which signals are repetitions


@contextmanager
def deferred_signals(stop: Callable[[], Any] = lambda: None) -> Iterator[list[int]]:
    """Call `stop` at SIGINT and SIGTERM in the block; another signal more than a second later has its usual effect.

    Args:
        stop: lets the block end soon.

    Returns:
        A context manager that yields the list of the signals so far.
    """
    received: list[int] = []
    times: list[float] = []

    def handle(number: int, _: object) -> None:
        received.append(number)
        times.append(time.monotonic())
        stop()
        if times[-1] - times[0] > PATIENCE:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        restore()
