"""The defaults of `generate`: generation_config.json, then config.json. [spec 12]"""

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, Unpack

from pegasusx_ref.checkpoint.file_names import CONFIG, GENERATION
from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.checkpoint.location import locate
from pegasusx_ref.checkpoint.plain import is_same, plain
from pegasusx_ref.checkpoint.settings import Limits, fields_and_extra, read_settings
from pegasusx_ref.errors import ConfigError, shown
from pegasusx_ref.files.json_files import write_json
from pegasusx_ref.files.reading import as_path
from pegasusx_ref.generation.known_settings import NEUTRAL

DEFAULT_NEW_TOKENS = 20
MAX_LENGTH = 2**20
LENGTH_LIMITS: dict[str, Limits] = {
    "max_length": Limits(2, MAX_LENGTH, "64 times the published input length; the start token counts"),
    "min_length": Limits(0, MAX_LENGTH, "the largest length"),
    "max_new_tokens": Limits(1, MAX_LENGTH - 1, "the largest length without the start token"),
    "min_new_tokens": Limits(0, MAX_LENGTH - 1, "the largest length without the start token"),
}
# What `generate` returns; config.json has some of these names for the model's own calls.
OUTPUTS = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")


class ModelConfig(Protocol):
    """A model's configuration, as far as generation needs it: the entries of its config.json."""

    def to_dict(self) -> dict[str, Any]:
        """Return the entries."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Generation settings, with the names of transformers' generation_config.json. [spec 12.1]

    Values are checked when `generate` uses them. Numbers of NumPy and torch become numbers of Python. None is the
    default; for the start, end and padding tokens it means none. Change settings with `updated`: in a copy of
    `dataclasses.replace` all settings count as given, and replace a model's own.

    Attributes:
        max_length: maximum number of tokens, including the start token; None to use max_new_tokens.
        min_length: minimum number of tokens, including the start token.
        max_new_tokens: maximum number of tokens, without the start token; takes precedence over max_length; 20 if
            neither is set.
        min_new_tokens: minimum number of tokens, without the start token; takes precedence over min_length.
        max_time: seconds after which the search stops, with the token that it is computing.
        stop_strings: texts that end a text as soon as they are complete; `generate` needs the tokenizer for them.
        num_beams: number of beams; 1 for no beam search.
        num_return_sequences: number of texts returned for each source; at most num_beams in beam search.
        length_penalty: a beam's score is divided by its length to this power; above 0 favours long texts.
        early_stopping: beam search stops when num_beams texts are finished (True), when no running beam is likely to
            beat them (False), or when none can beat them ("never").
        do_sample: sample tokens instead of taking the most probable one.
        temperature: divides the logits before sampling.
        top_k: sample among the k most probable tokens; 0 for all.
        top_p: sample among the smallest set of most probable tokens whose probabilities sum to p; 1 for all.
        repetition_penalty: above 1 makes tokens less likely that already occurred; 1 for none.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 to allow all.
        encoder_no_repeat_ngram_size: no n-gram of this size is copied from the source; 0 to allow all.
        bad_words_ids: sequences of token ids that do not occur.
        suppress_tokens: ids that do not occur.
        begin_suppress_tokens: ids that do not occur as the first token, or as the one after forced_bos_token_id.
        exponential_decay_length_penalty: [start, factor]: after `start` tokens, an end token becomes more likely with
            each token, by the factor.
        renormalize_logits: make the scores log-probabilities again after all other settings have changed them.
        forced_bos_token_id: the first token after the start token.
        forced_eos_token_id: the last token of a text that reaches max_length.
        decoder_start_token_id: the first decoder input; bos_token_id if None.
        bos_token_id: see decoder_start_token_id.
        eos_token_id: the id or ids that end a text; None if only the maximum length ends it.
        pad_token_id: fills rows that end before others; the first end token if None.
        return_dict_in_generate: return a `GenerateOutput` instead of ids.
        output_scores: with it, also the processed scores of all tokens at every step.
        output_logits: with it, also the logits of all tokens at every step.
        output_attentions: with it, also the attention probabilities.
        output_hidden_states: with it, also the input of every layer.
        extra: keys of the file without a field here, written back unchanged.
    """

    max_length: int | None = None
    min_length: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    exponential_decay_length_penalty: list[float] | None = None
    renormalize_logits: bool = False
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 0
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __new__(cls, **values: Any) -> Self:
        """Remember which settings were given: only these replace a model's own."""
        config = super().__new__(cls)
        object.__setattr__(config, "_given", frozenset(n for n, v in values.items() if v is not None))
        return config

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = plain(getattr(self, entry.name))
            if value is None and entry.name not in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "extra"):
                value = entry.default
            object.__setattr__(self, entry.name, value)

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> Self:
        """Take the generation settings of a model's config.json, where older checkpoints have them."""
        return cls._of_model(config.to_dict(), None)

    @classmethod
    def from_pretrained(cls, name: str | Path, config: ModelConfig | None = None, **hub: Unpack[HubOptions]) -> Self:
        """Read generation_config.json; without that file, use the settings in config.json.

        Args:
            name: a checkpoint folder, or a name of the Hugging Face Hub.
            config: the model's configuration, which gives the tokens that the file lacks: start and padding. The end
                token it does not give: if the file has no eos_token_id, no token ends a text.
            hub: see `HubOptions`.

        Raises:
            CheckpointError: the file is not JSON, or there is none.
        """
        folder = locate(name, "config", hub).folder
        has_file = os.path.lexists(folder / GENERATION)
        if config is not None:
            return cls._of_model(config.to_dict(), read_settings(folder / GENERATION) if has_file else None)
        return cls.from_dict(read_settings(folder / GENERATION) if has_file else _named(read_settings(folder / CONFIG)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Take the entries of a generation_config.json; those without a field go to `extra`, null is the default.

        Raises:
            ConfigError: not a dictionary.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"entries={shown(values)} must be a dictionary, the content of {GENERATION}")
        return cls(**fields_and_extra(cls, {str(n): value for n, value in values.items() if value is not None}))

    @classmethod
    def _of_model(cls, entries: dict[str, Any], written: dict[str, Any] | None) -> Self:
        """Combine the entries of config.json and, if there is that file, of generation_config.json."""
        start, bos = entries.get("decoder_start_token_id"), entries.get("bos_token_id")
        tokens = {"decoder_start_token_id": start, "bos_token_id": bos, "pad_token_id": entries.get("pad_token_id")}
        if written is None:
            written, tokens["eos_token_id"] = _named(entries), entries.get("eos_token_id")
        else:
            tokens["eos_token_id"] = None
            if written.get("bos_token_id") is not None:
                tokens["decoder_start_token_id"] = None
            if "pad_token_id" in written:
                tokens["pad_token_id"] = None
        values = tokens | {name: value for name, value in written.items() if value is not None}
        return cls(**fields_and_extra(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of a generation_config.json for transformers: tokens, and what was set to other values."""
        defaults = {f.name: f.default for f in dataclasses.fields(self) if not f.name.endswith("_id")}
        values = {name: getattr(self, name) for name in settings_names()}
        written = {n: v for n, v in values.items() if v is not None and not is_same(v, defaults.get(n))}
        return copy.deepcopy(self.extra | written)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/generation_config.json; create the folder if it does not exist.

        Raises:
            OutputError: the file cannot be written.
        """
        write_json(as_path(folder) / GENERATION, self.to_dict())

    def updated(self, **changes: Any) -> Self:
        """Copy with the changes that are not None."""
        changes = {name: value for name, value in changes.items() if value is not None}
        config = dataclasses.replace(self, **changes)
        object.__setattr__(config, "_given", self.given | changes.keys())
        return config

    @property
    def given(self) -> frozenset[str]:
        """The names of the settings that were given, not left at their defaults."""
        names: frozenset[str] = self.__dict__["_given"]
        return names

    def lengths(self) -> tuple[int, int]:
        """Resolve the four length limits.

        Returns:
            The minimum and maximum number of tokens, including the start token. If the minimum exceeds the maximum,
            the maximum applies.

        Raises:
            ConfigError: a limit that is used is not an integer in range.
        """
        limits = []
        for name in ("min", "max"):
            new, total = getattr(self, f"{name}_new_tokens"), getattr(self, f"{name}_length")
            used, value = (f"{name}_length", total) if new is None else (f"{name}_new_tokens", new)
            if value is not None:
                LENGTH_LIMITS[used].check(f"generation: {used}", value)
            limits.append(value if new is None else 1 + new)
        shortest, longest = limits
        return shortest or 0, longest or 1 + DEFAULT_NEW_TOKENS

    @property
    def start_token_id(self) -> int:
        """The first decoder input."""
        start = self.bos_token_id if self.decoder_start_token_id is None else self.decoder_start_token_id
        return start or 0

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text, always as a list."""
        return as_list(self.eos_token_id)

    @property
    def forced_eos_token_ids(self) -> list[int]:
        """The ids that end a text of maximum length, always as a list."""
        return as_list(self.forced_eos_token_id)

    @property
    def padding_token_id(self) -> int:
        """Fills rows of greedy search and sampling after their end."""
        return [*self.eos_token_ids, 0][0] if self.pad_token_id is None else self.pad_token_id

    @property
    def fill_token_id(self) -> int:
        """Fills rows of beam search after their end: the padding id, but the end token if the padding id is 0."""
        return self.pad_token_id or [*self.eos_token_ids, 0][0]


def settings_names() -> set[str]:
    """Return the names of all settings."""
    return {f.name for f in dataclasses.fields(GenerationConfig)} - {"extra"}


def _named(entries: dict[str, Any]) -> dict[str, Any]:
    """Select the settings of generation among the entries of a config.json."""
    names = (settings_names() | NEUTRAL.keys()) - set(OUTPUTS)
    return {name: value for name, value in entries.items() if name in names}


def as_list(value: Any) -> list[Any]:
    """Return a setting that is one value or a list of them as a list; None is an empty one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
