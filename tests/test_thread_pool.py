"""The NumPy backend's thread pool: errors, interrupts, forks, and the number of BLAS threads."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from threading import Barrier, Event, Thread, current_thread
from typing import Any

import numpy as np
import pytest
from pegasusx_numpy import linear, thread_pool

TIMEOUT = 20  # seconds, for what only a bug delays
needs_blas = pytest.mark.skipif(
    not thread_pool._blas().lib_controllers, reason="threadpoolctl does not know this NumPy's BLAS"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "num_threads", lambda: 2)


@pytest.fixture
def blas() -> Iterator[Any]:
    """Let BLAS use two threads."""
    library = thread_pool._blas().lib_controllers[0]
    before = library.num_threads
    library.set_num_threads(2)
    yield library
    library.set_num_threads(before)


class Items(list[int]):
    """Work items that set an event when all of them are taken."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count))
        self.all_taken = Event()

    def __iter__(self) -> Iterator[int]:
        return ItemIterator(super().__iter__(), self.all_taken)


class ItemIterator:
    def __init__(self, items: Iterator[int], all_taken: Event) -> None:
        self.items, self.all_taken = items, all_taken

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        try:
            return next(self.items)
        except StopIteration:
            self.all_taken.set()
            raise


def test_every_item_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "num_threads", lambda: 3)
    done: list[int] = []
    thread_pool.parallel_for(range(50), done.append)
    assert sorted(done) == list(range(50))


@pytest.mark.parametrize("items", [range(50), [7]], ids=["many", "one"])
def test_errors_are_raised_by_the_caller(items: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "num_threads", lambda: 3)

    def fail(item: int) -> None:
        if item == 7:
            raise ValueError("item 7")

    with pytest.raises(ValueError, match="item 7"):
        thread_pool.parallel_for(items, fail)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("in_caller", [True, False], ids=["in the caller's thread", "in another thread"])
def test_after_an_error_no_item_is_started(in_caller: bool, error: type[BaseException]) -> None:
    caller, both_working, started, items = current_thread(), Barrier(2), [], Items(50)

    def work(item: int) -> None:
        started.append(item)
        if item < 2:
            both_working.wait(TIMEOUT)
            if (current_thread() is caller) == in_caller:
                raise error
            items.all_taken.wait(TIMEOUT)  # the failed thread leaves no item

    with pytest.raises(error):
        thread_pool.parallel_for(items, work)
    assert sorted(started) == [0, 1]


@needs_blas
@pytest.mark.usefixtures("two_threads")
def test_a_second_interrupt_waits_for_the_other_threads(blas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C, and again while waiting: no thread is left working, and BLAS has its threads back."""
    caller, both_working, waiting, waiting_again, done = current_thread(), Barrier(2), Event(), Event(), []
    exception = Future.exception

    def interrupt_once(future: Future[None], timeout: float | None = None) -> BaseException | None:
        if not waiting.is_set():
            waiting.set()
            signal.raise_signal(signal.SIGINT)
        waiting_again.set()
        return exception(future, timeout)

    def work(item: int) -> None:
        both_working.wait(TIMEOUT)
        if current_thread() is caller:
            raise KeyboardInterrupt
        assert waiting_again.wait(TIMEOUT)
        done.append(item)

    monkeypatch.setattr(Future, "exception", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        thread_pool.parallel_for(range(2), work)
    assert len(done) == 1
    assert blas.num_threads == 2


@pytest.mark.usefixtures("two_threads")
def test_threads_have_the_callers_numpy_settings() -> None:
    both_working, caller, settings = Barrier(2), current_thread(), []

    def work(item: int) -> None:
        both_working.wait(TIMEOUT)
        if current_thread() is not caller:
            settings.append(np.geterr()["over"])

    with np.errstate(over="raise"):
        thread_pool.parallel_for(range(2), work)
    assert settings == ["raise"]


@needs_blas
@pytest.mark.usefixtures("two_threads")
def test_blas_gets_its_threads_back(blas: Any) -> None:
    """Also if two threads of the user work in parallel, and one starts or ends within the other."""
    first_working, second_working, first_done = Event(), Event(), Event()

    def first(item: int) -> None:
        first_working.set()
        second_working.wait(TIMEOUT)

    def second(item: int) -> None:
        second_working.set()
        first_done.wait(TIMEOUT)

    def start_second() -> None:
        first_working.wait(TIMEOUT)
        thread_pool.parallel_for(range(2), second)

    other = Thread(target=start_second)
    other.start()
    thread_pool.parallel_for(range(2), first)
    first_done.set()
    other.join()
    assert blas.num_threads == 2
    seen: list[int] = []
    for count in (4, 1):  # a thread of BLAS that helps with a single product would wait for the next one actively
        thread_pool.parallel_for(range(count), lambda item: seen.append(blas.num_threads))
    assert seen == [1] * 5
    assert blas.num_threads == 2


@needs_blas
@pytest.mark.parametrize(("num_rows", "expected"), [(1, [2]), (linear.FEW_ROWS + 1, [1])])
def test_blas_uses_its_threads_for_single_rows_only(
    num_rows: int, expected: list[int], blas: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads weights at the speed of the memory, but beside other work its threads would spin on the pool's cores."""
    seen: list[int] = []
    monkeypatch.setattr(linear, "MAX_BLAS_MACS", 0)
    monkeypatch.setattr(linear, "gemm", lambda x, weight, out: seen.append(blas.num_threads))
    linear.linear(np.zeros((num_rows, 4)), np.zeros((3, 4)))
    assert seen == expected
    assert blas.num_threads == 2


def exit_code_of_fork(function: Callable[[], int]) -> int:
    """Return what a function returns in a child process."""
    child = os.fork()
    if child == 0:
        os._exit(function())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@needs_fork
def test_a_child_process_has_its_own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork the parent's threads do not exist: work submitted to them would never end."""
    monkeypatch.setattr(thread_pool, "num_threads", lambda: 3)

    def meet() -> int:
        all_working = Barrier(3)  # as many as threads: each waits for the others
        done: list[int] = []
        thread_pool.parallel_for(range(3), lambda item: done.append(all_working.wait(timeout=TIMEOUT)))
        return len(done)

    assert meet() == 3
    assert exit_code_of_fork(meet) == 3


@needs_blas
@needs_fork
@pytest.mark.usefixtures("two_threads")
def test_a_child_of_a_working_process_has_all_blas_threads(blas: Any) -> None:
    """The parent's threads lift their limit of BLAS when they have finished; the child does not have these threads."""
    working, forked, seen = Event(), Event(), []

    def fork() -> None:
        working.wait(TIMEOUT)
        seen.append(exit_code_of_fork(lambda: int(blas.num_threads)))
        forked.set()

    def work(item: int) -> None:
        working.set()
        forked.wait(TIMEOUT)
        seen.append(blas.num_threads)

    forking = Thread(target=fork)
    forking.start()
    thread_pool.parallel_for(range(2), work)
    forking.join()
    assert seen == [2, 1, 1]
