"""A run over documents in files: shard by shard, and resumed where it ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from pegasusx_ref.corpus.documents import Document, Documents
from pegasusx_ref.corpus.engine import Engine, Finished, this_process
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
        num_real: source tokens that were computed.
        num_padded: the same, with padding.
    """

    total: int
    resumed: int = 0
    done: int = 0
    failed: int = 0
    num_tokens: int = 0
    num_dropped: int = 0
    seconds: float = 0.0
    num_real: int = 0
    num_padded: int = 0

    @property
    def padding(self) -> float:
        """Fraction of the computed source tokens that were padding."""
        return 1 - self.num_real / self.num_padded if self.num_padded else 0.0

    def after(self, finished: Finished, seconds: float) -> Self:
        """Return the state after some more documents."""
        summaries = finished.summaries
        return self._replace(
            done=self.done + len(summaries),
            failed=self.failed + sum(each.error is not None for each in summaries),
            num_tokens=self.num_tokens + sum(each.num_tokens for each in summaries),
            num_dropped=self.num_dropped + sum(each.num_dropped for each in summaries),
            seconds=seconds,
            num_real=self.num_real + finished.num_real,
            num_padded=self.num_padded + finished.num_padded,
        )


def summarize_corpus(
    inputs: Sequence[str | Path],
    out: str | Path,
    summarizer: Summarizer,
    *,
    column: str = "text",
    shard_rows: int = SHARD_ROWS,
    resume: bool = False,
    limit: int | None = None,
    engine: Engine = this_process,
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
        engine: computes the summaries, here or elsewhere.
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
    progress = Progress(documents.num_rows, min(shards.done.total(), documents.num_rows))
    remaining = islice(_remaining(documents, shards), limit)
    started = time.monotonic()
    with (
        shards.locked(),
        closing(_Rows(shards, shard_rows)) as rows,
        closing(engine(summarizer, remaining, shard_rows)) as results,
    ):
        for finished in results:
            rows.add(finished)
            progress = progress.after(finished, time.monotonic() - started)
            on_progress(progress)
            if stops():
                break
    return progress


class _Rows:
    """Rows that are finished; they are written by the shard, or when some time has passed, and the rest at the end."""

    def __init__(self, shards: Shards, shard_rows: int) -> None:
        self.shards, self.shard_rows = shards, shard_rows
        self.rows: list[dict[str, Any]] = []
        self.written = time.monotonic()

    def add(self, finished: Finished) -> None:
        for document, summary in zip(finished.documents, finished.summaries, strict=True):
            result = summary if document.problem is None else Summary(error=document.problem)
            origin = {"key": document.key, "file": document.file, "row": document.row}
            self.rows.append(self.shards.kept(document.columns) | origin | result._asdict())
        while len(self.rows) >= self.shard_rows:
            self._write(self.shard_rows)
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self.close()

    def close(self) -> None:
        self._write(len(self.rows))

    def _write(self, count: int) -> None:
        rows, self.rows = self.rows[:count], self.rows[count:]
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
