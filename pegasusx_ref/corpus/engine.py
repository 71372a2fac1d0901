"""What computes the summaries of a run: an engine takes documents and gives them back with their results."""

from collections.abc import Generator, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from pegasusx_ref.corpus.documents import Document
from pegasusx_ref.corpus.summarizer import Summarizer, Summary


class Finished(NamedTuple):
    """Some documents with their results.

    Attributes:
        documents: any of those that were taken.
        summaries: their results.
        num_real: source tokens that were computed for them.
        num_padded: the same, with padding.
    """

    documents: list[Document]
    summaries: list[Summary]
    num_real: int = 0
    num_padded: int = 0


Results = Generator[Finished, None, None]


class Engine(Protocol):
    """Summarizes documents somewhere, in any order."""

    def __call__(self, summarizer: Summarizer, documents: Iterator[Document], window: int) -> Results:
        """Take documents as they are needed, and yield each once; nothing at times, so that a run can be stopped.

        Args:
            summarizer: makes the summaries.
            documents: of the run.
            window: documents whose order may be changed, so that texts of similar length are computed together.
        """


def this_process(summarizer: Summarizer, documents: Iterator[Document], window: int) -> Results:
    """Summarize documents in this process, batch after batch; see `Engine`."""
    while chosen := list(islice(documents, window)):
        real, padded = summarizer.num_real, summarizer.num_padded
        for found in summarizer.in_batches([document.text for document in chosen]):
            computed = summarizer.num_real - real, summarizer.num_padded - padded
            yield Finished([chosen[i] for i in found], list(found.values()), *computed)
            real, padded = summarizer.num_real, summarizer.num_padded
