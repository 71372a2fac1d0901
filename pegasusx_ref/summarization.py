"""``pipeline("summarization")``: texts in, summaries out."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

from pegasusx_ref.checkpoint.hub import HubOptions, check_options
from pegasusx_ref.checkpoint.settings import is_integer
from pegasusx_ref.demo import DEMO_CHECKPOINT, NO_MODEL
from pegasusx_ref.errors import CheckpointError, InputError, InputTypeError, shown
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.generation.config import settings_names
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.inputs import either_spelling
from pegasusx_ref.tokenizer import PegasusTokenizer
from pegasusx_ref.tokenizer.batching import BatchEncoding, list_of_texts
from pegasusx_ref.tokenizer.foreign import ForeignTokenizer

MAX_NEW_TOKENS = 256  # where neither the checkpoint nor the caller limits the length, as in transformers 4
Summary = dict[str, str]


class SummarizationPipeline:
    """A model with its tokenizer, called with texts. Threads may share it, each call with a streamer of its own.

    A checkpoint's `task_specific_params.summarization` replace settings of its generation_config.json; their `prefix`
    stands in front of every text.

    Args:
        model: generates the summaries.
        tokenizer: the model's tokenizer, or one of transformers.

    Raises:
        CheckpointError: the tokenizer has more ids than the model.
        InputTypeError: neither.
    """

    task = "summarization"

    def __init__(self, model: PegasusXForConditionalGeneration, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer: Any = tokenizer
        self._tokenizer = tokenizer if isinstance(tokenizer, PegasusTokenizer) else ForeignTokenizer(tokenizer)
        check_vocabulary(self._tokenizer, tokenizer, model.config)
        self.generation_config, self.prefix = task_settings(model.config, model.generation_config)
        blank = self._tokenizer([self.prefix, f"{self.prefix} "])["input_ids"]
        self._empty_texts = {tuple(ids) for ids in blank}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.model!r}>"

    def __call__(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = 1,
        truncation: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
        **settings: Any,
    ) -> Any:
        """Summarize a text or several.

        Args:
            texts: a text, several, or an iterator of any number of them, which is read as the summaries are consumed.
            batch_size: number of texts that are processed together: those of a sequence with texts of similar length,
                those of an iterator in its order.
            truncation: truncate texts to the model's maximum length, with a warning that gives the number of dropped
                tokens; False keeps all tokens.
            clean_up_tokenization_spaces: see `PegasusTokenizer.decode`.
            settings: of `PegasusXForConditionalGeneration.generate`; the defaults are the checkpoint's.

        Returns:
            [{"summary_text": …}, …], one for each text. With num_return_sequences above 1, a list of that many for one
            text, and a list of such lists for several. For an iterator, an iterator over such a list for each text.

        Raises:
            InputError: an empty text, or inconsistent settings.
            InputTypeError: an argument that is not a text.

        Source: HF `SummarizationPipeline` of transformers 4.
        """
        if not is_integer(batch_size) or batch_size < 1:
            raise InputError(f"batch_size={shown(batch_size)} must be an integer of at least 1")
        options = (batch_size, truncation, clean_up_tokenization_spaces, settings)
        if isinstance(texts, str):
            return next(self._batches(_named([texts]), *options))
        if not hasattr(texts, "__len__") and hasattr(texts, "__iter__"):
            return self._batches(_named(texts), *options)
        all_texts = list(_named(list_of_texts(texts)))  # an invalid one is an error before the first is summarized
        order = list(range(len(all_texts)))
        if batch_size > 1 and settings.get("streamer") is None:  # texts of similar length need little padding
            ids = self._tokenizer([self.prefix + text for _, text in all_texts])["input_ids"]
            order.sort(key=lambda i: len(ids[i]), reverse=True)
        in_order = dict(zip(order, self._batches((all_texts[i] for i in order), *options), strict=True))
        found = [in_order[i] for i in range(len(all_texts))]
        return [summaries[0] for summaries in found] if all(len(s) == 1 for s in found) else found

    def tokenize(self, text: str, truncation: bool = True) -> tuple[list[int], int]:
        """Convert a text to token ids, with the task's prefix and without a warning.

        Args:
            text: the text.
            truncation: to the model's maximum length; False keeps long texts whole.

        Returns:
            The ids, and the number of tokens that were dropped.

        Raises:
            InputError: an empty text.
        """
        longest = self.model.config.max_position_embeddings if truncation else None
        batch = self._tokenizer([self.prefix + text], max_length=longest, truncation=truncation)
        (ids,), (dropped,) = batch["input_ids"], batch.num_truncated_tokens
        if tuple(ids) in self._empty_texts:
            raise InputError("is empty: there is nothing to summarize")
        return list(ids), int(dropped)

    def encode(
        self, texts: str | Sequence[str], truncation: bool = True, names: Sequence[str] | None = None
    ) -> BatchEncoding:
        """Convert texts to model inputs, truncated to the model's maximum length with a warning.

        Args:
            texts: a text or several.
            truncation: False keeps long texts whole.
            names: of the texts, for messages.

        Returns:
            NumPy arrays; `num_truncated_tokens` is the number of tokens dropped from each text.

        Raises:
            InputError: no texts, or an empty one.
        """
        longest = None if truncation is None or truncation is False else self.model.config.max_position_embeddings
        all_texts = [self.prefix + text for text in list_of_texts(texts)]
        names = names or [f"text {i}" for i in range(len(all_texts))]
        batch = self._tokenizer(all_texts, max_length=longest, truncation=truncation, padding=True, return_tensors="np")
        end = "first" if self._tokenizer.truncation_side == "left" else "last"
        for name, ids, mask, dropped in zip(
            names, batch.input_ids, batch.attention_mask, batch.num_truncated_tokens, strict=True
        ):
            if tuple(ids[mask == 1].tolist()) in self._empty_texts:
                raise InputError(f"{name} is empty: there is nothing to summarize")
            if dropped:
                limit = f"the model's {longest} tokens"
                warnings.warn(f"{name} is longer than {limit}: the {end} {dropped} were dropped", stacklevel=3)
        return batch

    def generate(self, batch: Mapping[str, Any], clean_up: bool | None = None, **settings: Any) -> list[list[str]]:
        """Generate the summaries of each text of a batch.

        Args:
            batch: of `encode`.
            clean_up: see `PegasusTokenizer.decode`.
            settings: of `PegasusXForConditionalGeneration.generate`; the defaults are the pipeline's generation_config.
        """
        own = {"generation_config": self.generation_config, "tokenizer": self.tokenizer}
        ids = self.model.generate(**batch, **(own | settings | {"return_dict_in_generate": False}))
        spaces = {} if clean_up is None else {"clean_up_tokenization_spaces": clean_up}
        summaries = self._tokenizer.batch_decode(ids, skip_special_tokens=True, **spaces)
        each = len(summaries) // len(batch["input_ids"])
        return [summaries[i : i + each] for i in range(0, len(summaries), each)]

    def _batches(
        self,
        named_texts: Iterator[tuple[str, str]],
        batch_size: int,
        truncation: bool,
        clean_up: bool | None,
        settings: dict[str, Any],
    ) -> Iterator[list[Summary]]:
        while batch := list(islice(named_texts, batch_size)):
            names, texts = zip(*batch, strict=True)
            for summaries in self.generate(self.encode(texts, truncation, names), clean_up, **settings):
                yield [{"summary_text": summary} for summary in summaries]


def _named(texts: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Check each text when it is asked for, and give it a name for messages."""
    for i, text in enumerate(texts):
        if isinstance(text, Mapping):
            keys = ", ".join(map(shown, islice(text, 3)))
            raise InputTypeError(f"text {i} is a {type(text).__name__} with {keys}: pass the texts themselves")
        if not isinstance(text, str):
            raise InputTypeError(f"text {i} is a {type(text).__name__}: pass a str")
        if not text.strip():
            raise InputError(f"text {i} is empty: there is nothing to summarize")
        yield f"text {i}", text


def check_vocabulary(sized: Any, tokenizer: Any, config: PegasusXConfig) -> None:
    """Check that a tokenizer has no more ids than the model.

    Args:
        sized: has the tokenizer's number of ids as its length.
        tokenizer: for its name.
        config: the model's configuration.

    Raises:
        CheckpointError: it has more.
    """
    if len(sized) > config.vocab_size:
        name = getattr(tokenizer, "vocab_file", None) or type(tokenizer).__name__
        raise CheckpointError(
            f"{name} has {len(sized)} ids, but the model {config.vocab_size}: use the model's own tokenizer"
        )


def task_settings(model_config: PegasusXConfig, config: GenerationConfig) -> tuple[GenerationConfig, str]:
    """Return the settings of the task, those of config.json before those of generation_config.json; and its prefix.

    Args:
        model_config: the model's configuration.
        config: its generation_config.
    """
    extra = model_config.extra
    tasks = extra.get("task_specific_params")
    task = tasks.get(SummarizationPipeline.task) if isinstance(tasks, dict) else None
    task = {name: value for name, value in task.items() if value is not None} if isinstance(task, dict) else {}
    prefix = task.pop("prefix", extra.get("prefix"))
    known = settings_names()
    ignored = {name: value for name, value in task.items() if name not in known}
    if not isinstance(prefix, str | None):
        ignored, prefix = ignored | {"prefix": prefix}, None
    if ignored:
        warnings.warn(f"ignoring unsupported task_specific_params of config.json: {shown(ignored)}", stacklevel=4)
    config = config.updated(**{name: value for name, value in task.items() if name in known})
    if config.max_length is None and config.max_new_tokens is None:
        config = config.updated(max_new_tokens=MAX_NEW_TOKENS)
    return config, prefix or ""


def pipeline(
    task: str = "summarization",
    model: str | Path | PegasusXForConditionalGeneration | None = None,
    *,
    tokenizer: Any = None,
    backend: str | None = None,
    device: str | int | None = None,
    dtype: Any = None,
    torch_dtype: Any = None,
    device_map: str | None = None,
    quantization: str | None = None,
    quantize_embedding: bool = False,
    quantization_config: Any = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    **hub: Unpack[HubOptions],
) -> SummarizationPipeline:
    """Load a model and its tokenizer for summarization.

    Args:
        task: "summarization".
        model: a checkpoint folder, a name of the Hugging Face Hub, or a model (then pass `tokenizer` too); None for the
            embedded checkpoint, with a warning.
        tokenizer: a tokenizer, also one of transformers, or its folder or name; None for the checkpoint's.
        backend: one of `available_backends()`; "numpy" if None.
        device: see `from_pretrained`.
        dtype: see `from_pretrained`.
        torch_dtype: the older spelling of `dtype`.
        device_map: the documentation's spelling of `device`.
        quantization: see `from_pretrained`, also for the next four.
        quantize_embedding: quantize the embedding tables too.
        quantization_config: the documentation's spelling of `quantization`.
        load_in_4bit: an older spelling of it.
        load_in_8bit: likewise.
        hub: see `HubOptions`.

    Raises:
        InputError: another task, a model without a tokenizer, or two spellings of one argument.
        CheckpointError: the folder is missing, corrupt, or belongs to another model.
        BackendError: the backend, the device or the dtype is not available, or is not the model's.
    """
    if not isinstance(task, str) or task != SummarizationPipeline.task:
        raise InputError(f"task={shown(task)} is not supported: pass 'summarization'")
    check_options(hub, "pipeline")
    dtype = either_spelling(dtype=dtype, torch_dtype=torch_dtype)
    device = either_spelling(device=device, device_map=device_map)
    if model is None:
        warnings.warn(NO_MODEL, stacklevel=2)
        model = DEMO_CHECKPOINT
    if isinstance(model, PegasusXForConditionalGeneration):
        if tokenizer is None:
            raise InputError("a model was given without its tokenizer: pass tokenizer=, or the checkpoint folder")
        if backend not in (None, model.ops.name):
            raise InputError(f"backend={shown(backend)}, but the model was loaded with backend {model.ops.name!r}")
        if any((quantization, quantize_embedding, quantization_config, load_in_4bit, load_in_8bit)):
            raise InputError("a loaded model cannot be quantized: pass its folder, or quantize it with from_pretrained")
        loaded = model.to(device=device, dtype=dtype)
    else:
        tokenizer = model if tokenizer is None else tokenizer
        loaded = PegasusXForConditionalGeneration.from_pretrained(
            model,
            backend or "numpy",
            device,
            dtype,
            quantization=quantization,
            quantize_embedding=quantize_embedding,
            quantization_config=quantization_config,
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
            **hub,
        )
    if isinstance(tokenizer, str | Path):
        tokenizer = PegasusTokenizer.from_pretrained(tokenizer, **hub)
    return SummarizationPipeline(loaded, tokenizer)
