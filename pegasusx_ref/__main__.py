"""``pegasusx-ref`` and ``python -m pegasusx_ref``: the process of a command, its signals, streams and exit code.

This module imports little, because signals are handled from its first function on: NumPy and the commands take longer.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
PATIENCE = 1.0  # seconds for which signals are repetitions: timeout(1) sends its own to the process and to its group
received: list[tuple[int, float]] = []  # signals while a command runs, and their times


def main() -> None:
    """Run the command line; on SIGINT and SIGTERM, end with exit code 130 and 143."""
    handle_signals(lambda number, _: os._exit(128 + number))  # nothing needs an end yet
    open_closed_descriptors()
    # OpenBLAS reads it when NumPy is imported. Its threads, which wait for the next product on a core that others
    # may need, then wait 2^18 cycles, 0.1 ms, instead of 2^26.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "18")
    from pegasusx_ref.cli import main as commands
    from pegasusx_ref.cli.messages import message
    from pegasusx_ref.cli.streams import open_streams

    open_streams()
    sys.unraisablehook = end_if_interrupted
    try:
        handle_signals(unwind)
        commands(prog_name="pegasusx-ref")
    except BaseException:  # SystemExit, or what a library made of it
        if not received:
            raise
    if received:
        message("Interrupted")
        sys.exit(128 + received[0][0])


def handle_signals(handler: Handler) -> None:
    """Set the handler of SIGINT and SIGTERM, unless they are ignored, as SIGINT in the background job of a shell."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def unwind(number: int, frame: FrameType | None) -> None:
    """Raise the first signal as SystemExit, so that context managers clean up; do not wait for them at a later one."""
    received.append((number, time.monotonic()))
    if len(received) == 1:
        raise SystemExit(128 + number)
    if received[-1][1] - received[0][1] > PATIENCE:
        end(number, frame)


def end(number: int, _: FrameType | None) -> None:
    """End the process at once, without temporaries and worker processes."""
    try:
        from multiprocessing import active_children

        from pegasusx_ref.files.writing import remove_temporaries

        remove_temporaries()
        for process in active_children():
            process.kill()
    finally:
        os._exit(128 + number)


def end_if_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """End the process where Python would print and forget a signal's exception, as in a destructor or at its exit."""
    if not received:
        sys.__unraisablehook__(unraisable)
    elif isinstance(unraisable.exc_value, SystemExit):
        end(received[0][0], None)


def open_closed_descriptors() -> None:
    """Open closed standard streams, so that no other file gets their numbers; reads and writes of results still fail.

    The mode of standard input and output is the opposite one; messages of standard error are dropped.
    """
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free number


if __name__ == "__main__":
    main()
