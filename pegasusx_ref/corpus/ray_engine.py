"""An engine whose workers are actors of Ray: on this machine, or on the nodes of a cluster."""

import builtins
import logging
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.corpus.documents import Document
from pegasusx_ref.corpus.engine import Finished, Results
from pegasusx_ref.corpus.summarizer import Summarizer, Summary
from pegasusx_ref.errors import BackendError, ExtraError, InputError, reason, shown

ON_HOST = ("golden", "numpy")  # backends whose weights are NumPy arrays, which the workers of a node can share
TASKS = 2  # of a worker, so that the next one is there when it has finished
DEATHS = 2  # of workers that did nothing else, after which the documents of their task are divided
POLL_SECONDS = 1.0


class Task(NamedTuple):
    """Documents for a worker.

    Attributes:
        documents: of similar length.
        is_suspect: whether a worker has died with them. From then on they get workers of their own: which one of
            several tasks ended a worker is not known, nor whether the result of another one was under way.
        deaths: how many of these workers have died.
    """

    documents: list[Document]
    is_suspect: bool = False
    deaths: int = 0


class Worker:
    """What runs on a node: a summarizer that is loaded once."""

    def __init__(self, summarizer: Summarizer) -> None:
        self.summarizer = summarizer

    def load(self) -> None:
        """Load the model."""
        self.summarizer.check()

    def summarize(self, texts: list[Any]) -> tuple[list[Summary], int, int]:
        """Return the summaries of texts, and the source tokens that were computed, without and with padding."""
        real, padded = self.summarizer.num_real, self.summarizer.num_padded
        found = self.summarizer.summarize(texts)
        return found, self.summarizer.num_real - real, self.summarizer.num_padded - padded


class RayEngine:
    """Summarizes documents by workers of Ray, each with a model of its own.

    The caller's process reads the documents and writes the table, as without Ray: a document is finished when its
    result has arrived there, so none is lost or doubled by a node that dies. Its documents go to other workers; those
    that end worker after worker, each with nothing else to do, are divided until one is left, which is an error.

    With the numpy backend a node holds the weights once, in Ray's object store. Other backends load them from the
    checkpoint, whose folder or Hub name must be the same on every node.

    Args:
        address: of the cluster, "auto" for that of this machine; None starts Ray here, and stops it at the end.
        workers: number of workers; None for as many as the cluster has room for, also when it grows.
        cpus_per_worker: cores, and threads, of a worker.
        gpus_per_worker: GPUs of a worker, 0.5 for two workers on one.

    Raises:
        InputError: impossible numbers.
        ExtraError: Ray is missing.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
    ) -> None:
        for name, value, low in (("workers", workers, 1), ("cpus_per_worker", cpus_per_worker, 0.01)):
            if value is not None and not value >= low:
                raise InputError(f"{name}={shown(value)} must be at least {low}")
        if not gpus_per_worker >= 0 or (gpus_per_worker > 1 and gpus_per_worker % 1):
            raise InputError(f"gpus_per_worker={shown(gpus_per_worker)} must be a fraction of 1, or a whole number")
        try:
            import ray
        except ImportError:
            raise ExtraError("engine 'ray' needs Ray: pip install 'pegasusx-ref[ray]'") from None
        self.ray, self.address, self.workers = ray, address, workers
        self.needs = {"CPU": float(cpus_per_worker), "GPU": float(gpus_per_worker)}

    def __call__(self, summarizer: Summarizer, documents: Iterator[Document], window: int) -> Results:
        """Summarize documents on the workers; see `Engine`."""
        with self._connected():
            self._check_room()
            if summarizer.load.get("backend") in (None, *ON_HOST):
                summarizer = summarizer.loaded()
            tasks = batches_by_length(documents, window, summarizer)
            pool = Pool(self, self.ray.put(summarizer))
            try:
                yield from pool.summarize(tasks)
            finally:
                pool.close()

    def room(self) -> int:
        """Return how many workers the cluster has room for."""
        there = self.ray.cluster_resources()
        return int(min(there.get(name, 0) // need for name, need in self.needs.items() if need))

    @contextmanager
    def _connected(self) -> Iterator[None]:
        if self.ray.is_initialized():
            yield
            return
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler, printer = signal.getsignal(signal.SIGTERM), builtins.print  # Ray replaces both
        try:
            local = {} if self.address else {"include_dashboard": False}
            self.ray.init(self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"no cluster of Ray at address {shown(self.address)}: {reason(error)}") from None
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)
        try:
            yield
        finally:
            self.ray.shutdown()
            builtins.print = printer

    def _check_room(self) -> None:
        """Refuse at once what a machine without a cluster can never have; a cluster may grow."""
        if self.address is None and not (room := self.room()) >= (self.workers or 1):
            there = self.ray.cluster_resources()
            wanted = ", ".join(f"{need:g} {name}" for name, need in self.needs.items() if need)
            has = ", ".join(f"{there.get(name, 0):g} {name}" for name in self.needs)
            raise InputError(
                f"{self.workers or 1} workers of {wanted} each are too many for this machine ({has}): it has room for "
                f"{room}; pass fewer, or the address of a cluster"
            )


def batches_by_length(documents: Iterator[Document], window: int, summarizer: Summarizer) -> Iterator[Task]:
    """Divide documents into batches of similar length, the longest of each window first."""
    tokenizer, size = summarizer.tokenizer, summarizer.batch_size
    while chosen := list(islice(documents, window)):
        lengths = [len(tokenizer(each.text)["input_ids"]) if isinstance(each.text, str) else 0 for each in chosen]
        order = np.argsort(lengths)[::-1].tolist()
        yield from (Task([chosen[i] for i in order[start : start + size]]) for start in range(0, len(order), size))


class Pool:
    """The workers of a run, and what each is doing.

    Args:
        engine: its settings.
        summarizer: a reference to the summarizer in the object store.
    """

    def __init__(self, engine: RayEngine, summarizer: Any) -> None:
        self.engine, self.ray, self.summarizer = engine, engine.ray, summarizer
        options = {"num_cpus": engine.needs["CPU"], "num_gpus": engine.needs["GPU"], "max_restarts": 0}
        self.start = self.ray.remote(**options)(Worker).remote
        self.loading: dict[Any, Any] = {}  # worker by the reference of its `load`
        self.running: dict[Any, tuple[Any, Task]] = {}  # worker and task by the reference of its results
        self.ready: list[Any] = []
        self.waiting: deque[Task] = deque()  # the next task, and those that waited for workers which died
        self.suspects: deque[Task] = deque()
        self.failed_starts = 0

    def summarize(self, tasks: Iterator[Task]) -> Results:
        """Give tasks to the workers, and yield results as they arrive, or nothing every second."""
        self.waiting.extend(islice(tasks, 1))
        while self.waiting or self.suspects or self.running:
            self.grow()
            for worker in self.ready * TASKS:
                running = [self.running[reference][1] for reference in self.tasks_of(worker)]
                if self.suspects:
                    if not running:
                        self.submit(worker, self.suspects.popleft())
                elif self.waiting and len(running) < TASKS and not any(task.is_suspect for task in running):
                    self.submit(worker, self.waiting.popleft())
                    if not self.waiting:
                        self.waiting.extend(islice(tasks, 1))
            arrived, _ = self.ray.wait([*self.loading, *self.running], timeout=POLL_SECONDS)
            if not arrived:
                yield Finished([], [])
            for reference in arrived:
                if reference in self.loading:
                    self.take_worker(reference)
                else:
                    yield from self.take_results(reference)

    def grow(self) -> None:
        """Start workers, also in place of those that died."""
        wanted = self.engine.workers or max(self.engine.room(), 1)
        for _ in range(wanted - len(self.loading) - len(self.ready)):
            worker = self.start(self.summarizer)
            self.loading[worker.load.remote()] = worker

    def submit(self, worker: Any, task: Task) -> None:
        """Give a task to a worker."""
        texts = [document.text for document in task.documents]
        self.running[worker.summarize.remote(texts)] = worker, task

    def take_worker(self, reference: Any) -> None:
        """Count a worker as ready when it has loaded its model.

        Raises:
            PegasusXError: what kept it from loading.
            BackendError: workers die one after another as they start.
        """
        worker = self.loading.pop(reference)
        try:
            self.result(reference)
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts > DEATHS and not self.ready:
                raise BackendError(
                    f"{self.failed_starts} workers ended while they loaded the model: {reason(error)}"
                ) from None
        else:
            self.ready.append(worker)
            self.failed_starts = 0

    def take_results(self, reference: Any) -> Results:
        """Yield the results of a task. If its worker died, other workers get its tasks."""
        if reference not in self.running:
            return
        worker, task = self.running[reference]
        try:
            summaries, num_real, num_padded = self.result(reference)
            del self.running[reference]
            yield Finished(task.documents, summaries, num_real, num_padded)
        except self.ray.exceptions.RayError as error:
            self.ready.remove(worker)
            (_, oldest), *others = [self.running.pop(each) for each in self.tasks_of(worker)]
            self.waiting += [task for _, task in others]
            half, deaths = len(oldest.documents) // 2, oldest.deaths + oldest.is_suspect
            if deaths < DEATHS:
                self.suspects.append(Task(oldest.documents, True, deaths))
            elif half:
                self.suspects += [Task(part, True) for part in (oldest.documents[:half], oldest.documents[half:])]
            else:
                message = f"{deaths} workers ended with it, the last one: {reason(error)}"
                yield Finished(oldest.documents, [Summary(error=message)])

    def tasks_of(self, worker: Any) -> list[Any]:
        """Return the references of a worker's tasks, the oldest first."""
        return [reference for reference, (each, _) in self.running.items() if each is worker]

    def result(self, reference: Any) -> Any:
        """Return what a worker returned, or raise what it raised."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def close(self) -> None:
        """End the workers."""
        for worker in [*self.loading.values(), *self.ready]:
            self.ray.kill(worker)
