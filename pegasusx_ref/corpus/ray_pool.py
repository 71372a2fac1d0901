"""The workers of a run on Ray, and the tasks between them: a worker that ends takes no document with it."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from pegasusx_ref.corpus.documents import Document
from pegasusx_ref.corpus.engine import Finished, Results
from pegasusx_ref.corpus.summarizer import Summarizer, Summary
from pegasusx_ref.errors import BackendError, reason

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


class Pool:
    """The workers of a run, and what each is doing.

    Args:
        ray: the module.
        needs: of a worker, "CPU" and "GPU".
        wanted: tells how many workers there should be now.
        summarizer: a reference to the summarizer in the object store.
    """

    def __init__(self, ray: Any, needs: dict[str, float], wanted: Callable[[], int], summarizer: Any) -> None:
        self.ray, self.wanted, self.summarizer = ray, wanted, summarizer
        options = {"num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "max_restarts": 0}
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
        for _ in range(self.wanted() - len(self.loading) - len(self.ready)):
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
