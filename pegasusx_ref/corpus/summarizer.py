"""A callable that summarizes batches of documents, as Ray Data, datasets and Spark call one."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.checkpoint.settings import is_integer
from pegasusx_ref.corpus.long_texts import divide
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.errors import InputError, PegasusXError, shown
from pegasusx_ref.summarization import SummarizationPipeline, pipeline
from pegasusx_ref.tokenizer import PegasusTokenizer

LONG = ("truncate", "error", "map")  # what is done with a text that is longer than the model
BATCH_SIZE, BATCH_TOKENS = 16, 2**16  # texts of a batch, and their source tokens, padding included


class Summary(NamedTuple):
    """The result of one document.

    Attributes:
        summary: its summary; None after an error. The summaries of several parts are joined by spaces.
        num_tokens: source tokens that the model read.
        num_dropped: source tokens beyond its maximum length.
        num_parts: parts that the text was divided into.
        error: why there is no summary, or None.
    """

    summary: str | None = None
    num_tokens: int = 0
    num_dropped: int = 0
    num_parts: int = 0
    error: str | None = None

    def joined(self, parts: "list[str | PegasusXError]") -> "Summary":
        """Return the result with the summaries of its parts, or the error of one of them."""
        for part in parts:
            if isinstance(part, PegasusXError):
                return self._replace(error=str(part))
        return self._replace(summary=" ".join(str(part) for part in parts if part))


class Part(NamedTuple):
    """A part of a document, usually all of it: the number of the document and of the part, and its token ids."""

    document: int
    number: int
    ids: list[int]


class Summarizer:
    """Summarizes batches of documents. It is loaded where it is used: a pickle holds the arguments only.

    `Summarizer("folder")({"text": texts})` returns the batch with the columns of `Summary`, so that an object, or the
    class with its arguments, fits `ray.data.Dataset.map_batches`, `datasets.Dataset.map(batched=True)` and Spark's
    `DataFrame.mapInPandas`. Texts of similar length are computed together. A document that fails gets an error, and the
    others their summaries.

    Args:
        model: as in `pipeline`, or a `SummarizationPipeline`.
        text_column: the batch's column that holds the texts.
        long: what to do with a text that is longer than the model: "truncate" it, call it an "error", or "map": divide
            it at ends of sentences, summarize the parts and join their summaries.
        batch_size: the most texts that are computed together.
        batch_tokens: the most source tokens that are computed together, padding included; a longer text is alone.
        load: further arguments of `pipeline`: backend, device, dtype, quantization, revision, ….
        settings: of `generate`; the defaults are the checkpoint's.

    Raises:
        InputError: an argument that is not possible.
    """

    def __init__(
        self,
        model: str | Path | SummarizationPipeline | None = None,
        *,
        text_column: str = "text",
        long: str = "truncate",
        batch_size: int = BATCH_SIZE,
        batch_tokens: int = BATCH_TOKENS,
        load: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if long not in LONG:
            raise InputError(f"long={shown(long)} is unknown: pass one of {', '.join(LONG)}")
        for name, value in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if not is_integer(value) or value < 1:
                raise InputError(f"{name}={shown(value)} must be an integer of at least 1")
        if settings.get("num_return_sequences") not in (None, 1):
            raise InputError(
                f"num_return_sequences={shown(settings['num_return_sequences'])}: a document gets one summary"
            )
        self.model, self.text_column, self.long = model, text_column, long
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.load, self.settings = dict(load or {}), settings
        self.num_real = self.num_padded = 0  # source tokens so far, without and with padding
        self._pipeline: SummarizationPipeline | None = model if isinstance(model, SummarizationPipeline) else None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pipeline": self.model if isinstance(self.model, SummarizationPipeline) else None}

    @property
    def pipeline(self) -> SummarizationPipeline:
        """The model and its tokenizer, loaded at the first use."""
        if self._pipeline is None:
            assert not isinstance(self.model, SummarizationPipeline)
            self._pipeline = pipeline(model=self.model, **self.load)
        return self._pipeline

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, which is there without loading the model."""
        if self._pipeline is not None:
            return self._pipeline.tokenizer
        chosen = self.load.get("tokenizer") or self.model or DEMO_CHECKPOINT
        hub = {name: value for name, value in self.load.items() if name in HubOptions.__annotations__}
        return PegasusTokenizer.from_pretrained(chosen, **hub) if isinstance(chosen, str | Path) else chosen

    def loaded(self) -> Self:
        """Return a copy whose pickle holds the model too."""
        copied = copy(self)
        copied.model = copied._pipeline = self.pipeline
        return copied

    def check(self) -> None:
        """Load the model, and check the settings: neither is an error of the documents."""
        self.pipeline.generation_config.updated(**self.settings).lengths()

    def __call__(self, batch: Any) -> Any:
        """Return a batch with the columns of `Summary`.

        Args:
            batch: arrays or lists of one length by column; or an iterator of data frames, for an iterator of theirs.

        Raises:
            InputError: there is no column of texts.
        """
        if isinstance(batch, Iterator):
            return (frame.assign(**self(dict(frame))) for frame in batch)
        if self.text_column not in batch:
            names = ", ".join(map(shown, batch)) or "none"
            raise InputError(f"no column {shown(self.text_column)} among {names}: pass text_column=")
        found = self.summarize(list(batch[self.text_column]))
        columns = {name: [getattr(each, name) for each in found] for name in Summary._fields}
        return {name: batch[name] for name in batch} | {
            name: np.array(values, dtype=object if name in ("summary", "error") else np.int64)
            for name, values in columns.items()
        }

    def summarize(self, texts: Sequence[Any]) -> list[Summary]:
        """Summarize texts; those of similar length are computed together.

        Args:
            texts: what is not a text gets an error.
        """
        found = {i: summary for batch in self.in_batches(texts) for i, summary in batch.items()}
        return [found[i] for i in range(len(texts))]

    def in_batches(self, texts: Sequence[Any]) -> Iterator[dict[int, Summary]]:
        """Summarize texts, and yield the results by index, those of a batch when it is finished; see `summarize`."""
        self.check()
        read: dict[int, Summary] = {}  # without the summary
        failed: dict[int, Summary] = {}
        parts: list[Part] = []
        written: dict[int, dict[int, str | PegasusXError]] = {}  # by document and number of the part
        for i, text in enumerate(texts):
            try:
                divided, dropped = self._parts(text)
            except PegasusXError as error:
                failed[i] = Summary(error=str(error))
                continue
            read[i] = Summary(None, sum(map(len, divided)), dropped, len(divided))
            written[i] = {}
            parts += [Part(i, n, ids) for n, ids in enumerate(divided)]
        yield failed
        for batch in self._batches(sorted(parts, key=lambda part: len(part.ids))):
            for part, result in zip(batch, self._generate([part.ids for part in batch]), strict=True):
                written[part.document][part.number] = result
            yield {
                i: read[i].joined([written[i][n] for n in range(read[i].num_parts)])
                for i in sorted({part.document for part in batch})
                if len(written[i]) == read[i].num_parts
            }

    def _parts(self, text: Any) -> tuple[list[list[int]], int]:
        """Return the token ids of each part of a text, and the number of dropped tokens.

        Raises:
            InputError: it is not a text, is empty, or too long for `long="error"`.
        """
        if not isinstance(text, str):
            raise InputError(f"is a {type(text).__name__}, not a text")
        if not text.strip():
            raise InputError("is empty: there is nothing to summarize")
        tokenize, limit = self.pipeline.tokenize, self.pipeline.model.config.max_position_embeddings
        ids, dropped = tokenize(text)
        if not dropped or self.long == "truncate":
            return [ids], dropped
        if self.long == "error":
            raise InputError(
                f"has {len(ids) + dropped} tokens, more than the model's {limit}: truncate or map long texts"
            )

        def num_tokens(part: str) -> int:
            ids, dropped = tokenize(part)
            return len(ids) + dropped

        return [tokenize(part)[0] for part in divide(text, num_tokens, limit)], 0

    def _batches(self, parts: list[Part]) -> Iterator[list[Part]]:
        """Divide parts in the order of their lengths, the longest first: too little memory shows at once."""
        while parts:
            longest = len(parts[-1].ids)
            count = max(min(self.batch_size, self.batch_tokens // longest), 1)
            yield parts[-count:]
            del parts[-count:]

    def _generate(self, texts: list[list[int]]) -> list[str | PegasusXError]:
        """Generate a summary of each text; after an error, or without memory for all, of smaller batches."""
        longest = max(map(len, texts))
        ids = np.full((len(texts), longest), self.pipeline.model.config.pad_token_id)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        try:
            found = self.pipeline.generate({"input_ids": ids, "attention_mask": mask}, **self.settings)
        except (PegasusXError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError":  # that of torch
                raise
            if len(texts) == 1:
                return [error if isinstance(error, PegasusXError) else InputError("needs more memory than there is")]
            half = len(texts) // 2
            return [*self._generate(texts[:half]), *self._generate(texts[half:])]
        self.num_real += sum(map(len, texts))
        self.num_padded += ids.size
        return [summaries[0] for summaries in found]
