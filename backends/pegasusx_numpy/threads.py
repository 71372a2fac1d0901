"""Pieces of work on as many threads as BLAS has, each of which multiplies by itself meanwhile.

NumPy computes everything but products on one thread, and after a product on several the other threads of BLAS keep
looking for work for a while, on cores that are then missing elsewhere. So here it is the pieces that are spread over
threads, and not the products in them.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Piece = TypeVar("Piece")
WORTH_SHARING = 2**26  # multiplications: fewer are done before threads have shared them
_working = Lock()  # held by the one who works in pieces: the limit of BLAS is the whole process's
_limit: Any = None  # that one's, which a fork must lift in the child


@cache
def _blas() -> Any:
    return ThreadpoolController().select(user_api="blas")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="pegasusx_numpy")


def _forget_parent() -> None:
    """Start anew in a child process, which has none of its parent's threads, but the limit they were working under."""
    global _working, _limit
    _pool.cache_clear()
    _working = Lock()
    if _limit is not None:
        _limit.restore_original_limits()
        _limit = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def number() -> int:
    """Say how many threads there are: as many as BLAS may use now, which is one while pieces are being worked on.

    One too where threadpoolctl does not know the BLAS, as macOS's Accelerate: it has threads that nobody can limit.
    """
    return max((library.num_threads for library in _blas().lib_controllers), default=1)


def for_each(pieces: Sequence[Piece], work: Callable[[Piece], None], most: int | None = None) -> None:
    """Do the work of every piece, whatever the order; after an error in one of them no other is begun.

    While somebody works in pieces, others, and pieces that are cut up further, get by with the thread that they have.

    Args:
        pieces: that do not touch each other's results.
        work: calls NumPy for one of them.
        most: threads at the most, if not as many as BLAS may use.
    """
    threads = min(len(pieces), most or len(pieces))
    if threads > 1:
        threads = min(threads, number())
    if threads > 1 and _working.acquire(blocking=False):
        try:
            _spread(pieces, work, threads)
        finally:
            _working.release()
    else:
        for piece in pieces:
            work(piece)


def _spread(pieces: Sequence[Piece], work: Callable[[Piece], None], threads: int) -> None:
    global _limit
    shared = iter(pieces)  # a thread takes the next piece when it is done with one

    def take() -> None:
        with _blas().limit(limits=1):  # in each thread: where BLAS runs on OpenMP the limit is the thread's own
            try:
                for piece in shared:
                    work(piece)
            finally:
                for _ in shared:  # after an error, or Ctrl-C, nothing is left to begin
                    pass

    with _blas().limit(limits=1) as _limit:
        others = [_pool(threads).submit(copy_context().run, take) for _ in range(threads - 1)]
        try:
            take()
        finally:
            _wait(others)
            _limit = None
    for other in others:
        if not other.cancelled():
            other.result()


def _wait(others: list[Future[None]]) -> None:
    """Wait until all are done, however often Ctrl-C is pressed: what they still hold is given back in their order."""
    interrupt: KeyboardInterrupt | None = None
    running = [other for other in others if not other.cancel()]
    while running:
        try:
            running[-1].exception()
            running.pop()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def split(length: int, most: int) -> list[slice]:
    """Cut a length into pieces of about one size, as many for each thread.

    Args:
        length: 1 or more.
        most: of a piece.
    """
    threads = number()
    num_pieces = -(-length // (most * threads)) * threads
    size = -(-length // num_pieces)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
