"""A run over documents in files: shard by shard, and resumed where it ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pegasusx_ref.corpus.documents import Document, Documents
from pegasusx_ref.corpus.shards import Shards
from pegasusx_ref.corpus.summarizer import Summarizer, Summary
from pegasusx_ref.errors import InputError, shown

SHARD_ROWS = 256
FLUSH_SECONDS = 300.0  # after which finished documents are written though the shard is not full


class Progress(NamedTuple):
    """The state of a run.

    Attributes:
        total: number of documents.
        resumed: of them, those that earlier runs had done.
        done: those of this run, failed ones included.
        failed: number of documents with an error.
        num_tokens: source tokens that were read.
        num_dropped: source tokens that were truncated.
        seconds: since the start.
        padding: fraction of the computed source tokens that were padding.
    """

    total: int
    resumed: int = 0
    done: int = 0
    failed: int = 0
    num_tokens: int = 0
    num_dropped: int = 0
    seconds: float = 0.0
    padding: float = 0.0


def summarize_corpus(
    inputs: Sequence[str | Path],
    out: str | Path,
    summarizer: Summarizer,
    *,
    column: str = "text",
    shard_rows: int = SHARD_ROWS,
    resume: bool = False,
    limit: int | None = None,
    on_progress: Callable[[Progress], Any] = lambda _: None,
    stops: Callable[[], bool] = lambda: False,
) -> Progress:
    """Summarize the documents of some files into a table of parquet shards.

    A shard's documents are summarized in the order of their lengths. Each row has the columns of `Summary`, the row's
    other columns, its file and place, and a key of its text. A document that fails is a row with its error. After a
    crash at any moment, `resume=True` continues: a document whose text is in the table as often as in the input so far
    is left out.

    Args:
        inputs: see `Documents`.
        out: folder of the shards.
        summarizer: makes the summaries.
        column: of tables, that holds the texts.
        shard_rows: rows of a shard.
        resume: continue the table in `out`.
        limit: stop after so many documents of this run.
        on_progress: called after each batch.
        stops: asked after each batch; once it is true, what is finished is written, and the run ends.

    Returns:
        The state at the end; `resumed + done < total` if it was stopped.

    Raises:
        InputError: of the inputs or the settings; see `Documents` and `Shards`.
        OutputError: a shard cannot be written. What was written before stays.
    """
    if shard_rows < 1 or (limit is not None and limit < 0):
        raise InputError(f"shard_rows={shown(shard_rows)}, limit={shown(limit)}: pass positive numbers")
    documents = Documents(inputs, column)
    settings = {"model": str(summarizer.model), "column": column, "long": summarizer.long}
    settings |= {name: value for name, value in (summarizer.load | summarizer.settings).items() if value is not None}
    shards = Shards(Path(out), documents.kinds, settings, resume)
    with shards.locked():
        run = _Run(summarizer, shards, Progress(documents.num_rows, min(shards.done.total(), documents.num_rows)))
        remaining = islice(_remaining(documents, shards), limit)
        while not run.is_stopped and (window := list(islice(remaining, shard_rows))):
            run.summarize(window, on_progress, stops)
    return run.progress


class _Stop(Exception):
    """Ends a window after a batch."""


class _Run:
    """The state of a run: finished rows that are not written yet, and the progress."""

    def __init__(self, summarizer: Summarizer, shards: Shards, progress: Progress) -> None:
        self.summarizer, self.shards, self.progress = summarizer, shards, progress
        self.is_stopped = False
        self.rows: list[dict[str, Any]] = []
        self.started = self.written = time.monotonic()

    def summarize(
        self, window: list[Document], on_progress: Callable[[Progress], Any], stops: Callable[[], bool]
    ) -> None:
        """Summarize the documents of a shard, and write those that are finished, also after an error."""
        readable = [document for document in window if document.problem is None]

        def finish(documents: list[Document], summaries: list[Summary]) -> None:
            for document, summary in zip(documents, summaries, strict=True):
                origin = {"key": document.key, "file": document.file, "row": document.row}
                self.rows.append(self.shards.kept(document.columns) | origin | summary._asdict())
            self._advance(summaries)
            on_progress(self.progress)
            if time.monotonic() - self.written > FLUSH_SECONDS:
                self._write()
            if stops():
                raise _Stop

        try:
            broken = [document for document in window if document.problem is not None]
            finish(broken, [Summary(error=document.problem) for document in broken])
            self.summarizer.summarize(
                [document.text for document in readable],
                lambda indices, summaries: finish([readable[i] for i in indices], summaries),
            )
        except _Stop:
            self.is_stopped = True
        finally:
            self._write()

    def _advance(self, summaries: list[Summary]) -> None:
        computed = self.summarizer.num_padded
        self.progress = self.progress._replace(
            done=self.progress.done + len(summaries),
            failed=self.progress.failed + sum(each.error is not None for each in summaries),
            num_tokens=self.progress.num_tokens + sum(each.num_tokens for each in summaries),
            num_dropped=self.progress.num_dropped + sum(each.num_dropped for each in summaries),
            seconds=time.monotonic() - self.started,
            padding=1 - self.summarizer.num_real / computed if computed else 0.0,
        )

    def _write(self) -> None:
        rows, self.rows = self.rows, []
        self.shards.write(rows)
        self.written = time.monotonic()


def _remaining(documents: Documents, shards: Shards) -> Iterator[Document]:
    """Yield the documents that are not in the table yet."""
    before = shards.done.copy()
    for document in documents:
        key = document.key
        if before[key] > 0:
            before[key] -= 1
        else:
            yield document
