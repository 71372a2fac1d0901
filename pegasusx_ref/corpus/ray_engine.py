"""An engine whose workers are actors of Ray: on this machine, or on the nodes of a cluster."""

import builtins
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np

from pegasusx_ref.corpus.documents import Document
from pegasusx_ref.corpus.engine import Results
from pegasusx_ref.corpus.ray_pool import Pool, Task
from pegasusx_ref.corpus.summarizer import Summarizer
from pegasusx_ref.errors import ExtraError, InputError, reason, shown

ON_HOST = ("golden", "numpy")  # backends whose weights are NumPy arrays, which the workers of a node can share


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
            pool = Pool(self.ray, self.needs, self.wanted, self.ray.put(summarizer))
            try:
                yield from pool.summarize(tasks)
            finally:
                pool.close()

    def room(self) -> int:
        """Return how many workers the cluster has room for."""
        there = self.ray.cluster_resources()
        return int(min(there.get(name, 0) // need for name, need in self.needs.items() if need))

    def wanted(self) -> int:
        """Return how many workers there should be now."""
        return self.workers or max(self.room(), 1)

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
