"""``pipeline("summarization")``: texts in, summaries out."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pegasusx_ref.checkpoint.settings import is_integer
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.errors import CheckpointError, InputError, shown
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tokenizer import PegasusTokenizer
from pegasusx_ref.tokenizer.batching import BatchEncoding, list_of_texts

Summary = dict[str, str]


class SummarizationPipeline:
    """A model with its tokenizer, called with texts. Threads may share it, each call with a streamer of its own.

    Args:
        model: generates the summaries.
        tokenizer: the model's tokenizer.

    Raises:
        CheckpointError: the tokenizer has more ids than the model.
    """

    task = "summarization"

    def __init__(self, model: PegasusXForConditionalGeneration, tokenizer: PegasusTokenizer) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise CheckpointError(
                f"{tokenizer.vocab_file} has {tokenizer.vocab_size} ids, but the model {model.config.vocab_size}: "
                "use the model's own tokenizer"
            )
        self.model = model
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.model!r}>"

    def __call__(
        self, texts: str | Iterable[str], *, batch_size: int = 1, truncation: bool = True, **settings: Any
    ) -> list[Summary] | list[list[Summary]]:
        """Summarize a text or several.

        Args:
            texts: a text, or several.
            batch_size: number of texts that are processed together.
            truncation: truncate texts to the model's maximum length, with a warning that gives the number of dropped
                tokens; False keeps all tokens.
            settings: of `PegasusXForConditionalGeneration.generate`; the defaults are the checkpoint's.

        Returns:
            [{"summary_text": …}, …], one for each text. With num_return_sequences above 1, a list of that many for one
            text, and a list of such lists for several.

        Raises:
            InputError: an argument that is not a text, an empty text, or inconsistent settings.

        Source: HF `SummarizationPipeline` of transformers 4.
        """
        if not is_integer(batch_size) or batch_size < 1:
            raise InputError(f"batch_size={shown(batch_size)} must be an integer of at least 1")
        all_texts = list_of_texts(texts)
        for i, text in enumerate(all_texts):
            if not isinstance(text, str):
                raise InputError(f"text {i} is a {type(text).__name__}: pass a str")
            if not text.strip():
                raise InputError(f"text {i} is empty: there is nothing to summarize")
        found: list[list[Summary]] = []
        for start in range(0, len(all_texts), batch_size):
            found += self._summarize(all_texts[start : start + batch_size], start, truncation, settings)
        if isinstance(texts, str):
            return found[0]
        return [summaries[0] for summaries in found] if all(len(s) == 1 for s in found) else found

    def encode(self, texts: str | Sequence[str], truncation: bool = True) -> BatchEncoding:
        """Convert texts to model inputs, truncated to the model's maximum length.

        Args:
            texts: a text or several.
            truncation: False keeps long texts whole.

        Returns:
            NumPy arrays; `num_truncated_tokens` is the number of tokens dropped from each text.

        Raises:
            InputError: no texts.
        """
        longest = self.model.config.max_position_embeddings if truncation else None
        return self.tokenizer(texts, max_length=longest, truncation=truncation, padding=True, return_tensors="np")

    def _summarize(
        self, texts: list[str], first: int, truncation: bool, settings: dict[str, Any]
    ) -> Iterator[list[Summary]]:
        batch = self.encode(texts, truncation)
        for i, cut in enumerate(batch.num_truncated_tokens):
            if cut:
                warnings.warn(
                    f"text {first + i} is longer than the model's {self.model.config.max_position_embeddings} tokens: "
                    f"the last {cut} were dropped",
                    stacklevel=3,
                )
        ids = self.model.generate(**batch, **settings)
        summaries = [{"summary_text": t} for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        each = len(summaries) // len(texts)
        return (summaries[i : i + each] for i in range(0, len(summaries), each))


def pipeline(
    task: str = "summarization",
    model: str | Path | PegasusXForConditionalGeneration | None = None,
    *,
    tokenizer: str | Path | PegasusTokenizer | None = None,
    backend: str = "numpy",
    device: str | int | None = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    device_map: str | None = None,
) -> SummarizationPipeline:
    """Load a model and its tokenizer for summarization.

    Args:
        task: "summarization".
        model: a checkpoint folder, or a model (then pass `tokenizer` too); None for the embedded checkpoint, with a
            warning.
        tokenizer: a tokenizer or its folder; None for the checkpoint folder's.
        backend: one of `available_backends()`. This and the following arguments apply if `model` is a folder.
        device: see `from_pretrained`.
        dtype: see `from_pretrained`.
        torch_dtype: the older spelling of `dtype`.
        device_map: the documentation's spelling of `device`.

    Raises:
        InputError: another task, or a model without a tokenizer.
        CheckpointError: the folder is missing, corrupt, or belongs to another model.
        BackendError: the backend, the device or the dtype is not available.
    """
    if not isinstance(task, str) or task != SummarizationPipeline.task:
        raise InputError(f"task={shown(task)} is not supported: pass 'summarization'")
    if model is None:
        warnings.warn(
            "no model was given: using the embedded checkpoint, which can only write the one-line synopsis of a Debian "
            "package",
            stacklevel=2,
        )
        model = DEMO_CHECKPOINT
    if isinstance(model, PegasusXForConditionalGeneration):
        if tokenizer is None:
            raise InputError("a model was given without its tokenizer: pass tokenizer=, or the checkpoint folder")
        loaded = model
    else:
        tokenizer = model if tokenizer is None else tokenizer
        loaded = PegasusXForConditionalGeneration.from_pretrained(
            model, backend, device, dtype, torch_dtype=torch_dtype, device_map=device_map
        )
    if not isinstance(tokenizer, PegasusTokenizer):
        tokenizer = PegasusTokenizer.from_pretrained(tokenizer)
    return SummarizationPipeline(loaded, tokenizer)
