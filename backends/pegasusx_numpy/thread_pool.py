"""A thread pool for NumPy: each thread takes whole work items, while BLAS is limited to one thread.

NumPy computes everything except matrix products on one thread. After a product on several threads, the other threads of
BLAS keep spinning for a while, on cores that are then missing elsewhere. So this backend parallelizes over work items
(heads, blocks, chunks of tokens) and computes each product on a single thread, that of a single item included.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
MIN_PARALLEL_MACS = 2**26  # multiply-adds: less work is done before other threads have started
_parallel = Lock()  # held while one caller works in parallel: the limit of BLAS applies to the whole process
_is_forked = False
_blas_limit: "_BlasLimit | None" = None  # that caller's limit, which a forked child has to lift


@cache
def _blas() -> Any:
    """Return what limits NumPy's BLAS; SciPy brings one of its own, which no product here uses."""
    every = ThreadpoolController().select(user_api="blas")
    own = [library.filepath for library in every.lib_controllers if "numpy" in Path(library.filepath).parent.name]
    return every.select(filepath=own) if own else every


@cache
def _limits_each_thread() -> bool:
    """Return whether BLAS has a limit for each thread, as one built on OpenMP has, instead of one for the process."""
    return any(getattr(library, "threading_layer", "openmp") == "openmp" for library in _blas().lib_controllers)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="pegasusx_numpy")


def _reset_after_fork() -> None:
    """Start with a new pool in a child process: it has none of its parent's threads, but inherits their BLAS limit."""
    global _parallel, _blas_limit, _is_forked
    _is_forked = True
    _pool.cache_clear()
    _parallel = Lock()
    if _blas_limit is not None:
        _blas_limit.lift()
        _blas_limit = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def num_threads() -> int:
    """Return the number of threads that BLAS may use now, which is 1 inside `parallel_for`.

    It is 1 as well where threadpoolctl does not know the BLAS: macOS's Accelerate has threads that cannot be limited.
    """
    return max((library.num_threads for library in _blas().lib_controllers), default=1)


def parallel_for(items: Sequence[Item], work: Callable[[Item], None], max_threads: int | None = None) -> None:
    """Call `work` for each item, in any order; after an error no further item is started.

    Nested calls, and calls while another thread works in parallel, run on the caller's thread alone.

    Args:
        items: whose results do not overlap.
        work: computes one item with NumPy.
        max_threads: as many as BLAS may use if None.
    """
    if not _parallel.acquire(blocking=False):
        for item in items:
            work(item)
        return
    try:
        threads = min(len(items), max_threads or len(items))
        _run_on_threads(items, work, min(threads, num_threads()) if threads > 1 else 1)
    finally:
        _parallel.release()


@contextmanager
def threads_of_caller() -> Iterator[int]:
    """Give a caller that has threads of its own the number that it may use.

    It is 1 while another caller works in parallel, and in a forked process: OpenMP's threads do not survive a fork.
    """
    if _is_forked or not _parallel.acquire(blocking=False):
        yield 1
        return
    try:
        yield num_threads()
    finally:
        _parallel.release()


class _BlasLimit:
    """Limits BLAS to one thread, in a third of the time that threadpoolctl's own context takes."""

    def __init__(self) -> None:
        self._before = [(library, library.num_threads) for library in _blas().lib_controllers]
        for library, _ in self._before:
            library.set_num_threads(1)

    def lift(self) -> None:
        """Give BLAS the threads back that it had."""
        for library, num_threads in self._before:
            library.set_num_threads(num_threads)


def _run_on_threads(items: Sequence[Item], work: Callable[[Item], None], threads: int) -> None:
    global _blas_limit
    queue = iter(items)  # shared by the threads, so that a thread takes its next item when it has finished one

    def run() -> None:
        with _blas().limit(limits=1) if _limits_each_thread() else nullcontext():
            try:
                for item in queue:
                    work(item)
            finally:
                for _ in queue:  # after an error or Ctrl-C: leave no item to the other threads
                    pass

    _blas_limit = _BlasLimit()
    try:
        others = [_pool(threads).submit(copy_context().run, run) for _ in range(threads - 1)]
        try:
            run()
        finally:
            _wait_for_all(others)
    finally:
        limit, _blas_limit = _blas_limit, None
        limit.lift()
    for other in others:
        if not other.cancelled():
            other.result()


def _wait_for_all(futures: list[Future[None]]) -> None:
    """Wait until all are done, even if Ctrl-C is pressed meanwhile: BLAS limits must be lifted in order."""
    interrupt: KeyboardInterrupt | None = None
    running = [future for future in futures if not future.cancel()]
    while running:
        try:
            running[-1].exception()
            running.pop()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def balanced_chunks(length: int, max_size: int) -> list[slice]:
    """Split a length into chunks of about the same size, with the same number of chunks for each thread.

    Args:
        length: 1 or more.
        max_size: of a chunk.
    """
    threads = num_threads()
    num_chunks = -(-length // (max_size * threads)) * threads
    size = -(-length // num_chunks)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
