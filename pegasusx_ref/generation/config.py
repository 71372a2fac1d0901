"""The defaults of `generate`: generation_config.json, then config.json. [spec 12]"""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from pegasusx_ref.checkpoint.settings import Limits, fields_and_extra, is_integer, read_settings
from pegasusx_ref.errors import ConfigError, shown
from pegasusx_ref.files.reading import reading

DEFAULT_NEW_TOKENS = 20
# Settings of transformers that would change the tokens and are not supported, with the value that has no effect.
NEUTRAL: dict[str, Any] = {
    "encoder_repetition_penalty": 1.0,
    "forced_bos_token_id": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "stop_strings": None,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_beam_groups": 1,
    "penalty_alpha": None,
}
MAX_LENGTH = 2**20
_ROWS = Limits(1, 1024, "rows of a text that are decoded together")
_NGRAM = Limits(0, MAX_LENGTH, "the largest length")
# The range of every number. [spec 12.1]
LIMITS: dict[str, Limits] = {
    "num_beams": _ROWS,
    "num_return_sequences": _ROWS,
    "top_k": Limits(0, 2**24, "the largest vocabulary"),
    "no_repeat_ngram_size": _NGRAM,
    "encoder_no_repeat_ngram_size": _NGRAM,
    "temperature": Limits(1e-30, 1e30, "logits divided by it stay in float32"),
    "top_p": Limits(1e-30, 1.0, "a probability above 0"),
    "repetition_penalty": Limits(1e-30, 1e30, "logits times it stay in float32"),
    "length_penalty": Limits(-6.0, 6.0, "the largest length to this power stays in float32"),
}
LENGTH_LIMITS: dict[str, Limits] = {
    "max_length": Limits(2, MAX_LENGTH, "64 times the published input length; the start token counts"),
    "min_length": Limits(0, MAX_LENGTH, "the largest length"),
    "max_new_tokens": Limits(1, MAX_LENGTH - 1, "the largest length without the start token"),
    "min_new_tokens": Limits(0, MAX_LENGTH - 1, "the largest length without the start token"),
}


class ModelConfig(Protocol):
    """A model's configuration, as far as generation needs it: the entries of its config.json."""

    def to_dict(self) -> dict[str, Any]:
        """Return the entries."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Generation settings, with the names of transformers' generation_config.json. [spec 12.1]

    Attributes:
        max_length: maximum number of tokens, including the start token; None to use max_new_tokens.
        min_length: minimum number of tokens, including the start token.
        max_new_tokens: maximum number of tokens, without the start token; takes precedence over max_length; 20 if
            neither is set.
        min_new_tokens: minimum number of tokens, without the start token; takes precedence over min_length.
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
        decoder_start_token_id: the first decoder input.
        eos_token_id: the id or ids that end a text; None if only the maximum length ends it.
        pad_token_id: fills rows that end before others.
        forced_eos_token_id: the last token of a text that reaches max_length.
        extra: keys of the file without a field here, written back unchanged.
    """

    max_length: int | None = None
    min_length: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
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
    decoder_start_token_id: int = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int = 0
    forced_eos_token_id: int | list[int] | None = None
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> Self:
        """Take the generation settings of a model's config.json, where older checkpoints have them."""
        names = {f.name for f in dataclasses.fields(cls)} | NEUTRAL.keys()
        return cls._read({}, {name: value for name, value in config.to_dict().items() if name in names})

    @classmethod
    def from_pretrained(cls, folder: Path, config: ModelConfig) -> Self:
        """Read generation_config.json; without that file, use the settings in config.json.

        If generation_config.json has no eos_token_id, no token ends a text. Missing start and padding tokens are taken
        from config.json.

        Args:
            folder: the checkpoint folder.
            config: the model's configuration.

        Raises:
            CheckpointError: the file is not JSON.
            ConfigError: an invalid setting.
        """
        path, written, entries = folder / "generation_config.json", None, config.to_dict()
        if os.path.lexists(path):
            written = read_settings(path)
        else:
            path = folder / "config.json"
        with reading(path, "generation settings", ConfigError):
            if written is None:
                found = cls.from_model_config(config)
            else:
                defaults = {name: entries[name] for name in ("decoder_start_token_id", "pad_token_id")}
                found = cls._read(defaults | {"eos_token_id": None}, written)
            found.check(entries["vocab_size"])
            found.lengths()
            return found

    @classmethod
    def _read(cls, defaults: dict[str, Any], written: dict[str, Any]) -> Self:
        values = defaults | {name: value for name, value in written.items() if value is not None}
        return cls(**fields_and_extra(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of a generation_config.json for transformers: those that differ from its defaults."""
        defaults = {f.name: f.default for f in dataclasses.fields(self) if not f.name.endswith("_id")}
        values = dataclasses.asdict(self)
        extra: dict[str, Any] = values.pop("extra")
        return extra | {n: v for n, v in values.items() if v is not None and v != defaults.get(n)}

    def updated(self, **changes: Any) -> Self:
        """Copy with the changes that are not None."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    def check(self, vocab_size: int) -> None:
        """Check every setting except the length limits, which `lengths` checks.

        Args:
            vocab_size: V of the model.

        Raises:
            ConfigError: an invalid setting, with the limit and the remedy.
        """
        for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            ids = _as_list(value) if "eos" in name else [value]
            if not all(is_integer(i) and 0 <= i < vocab_size for i in ids):
                raise ConfigError(
                    f"generation: {name}={shown(value)} must be a token id in [0, vocab_size={vocab_size})"
                )
        for name, limits in LIMITS.items():
            limits.check(f"generation: {name}", getattr(self, name))
        if not isinstance(self.early_stopping, bool | str) or self.early_stopping not in (True, False, "never"):
            raise ConfigError(f"generation: early_stopping={shown(self.early_stopping)}: choose True, False or 'never'")
        if not isinstance(self.do_sample, bool):
            raise ConfigError(f"generation: do_sample={shown(self.do_sample)} must be true or false")
        if self.do_sample and self.num_beams > 1:
            raise ConfigError(f"generation: do_sample with num_beams={self.num_beams}: sample with num_beams=1")
        most = self.num_beams if not self.do_sample else self.num_return_sequences
        if self.num_return_sequences > most:
            raise ConfigError(
                f"generation: num_return_sequences={self.num_return_sequences} is more than num_beams={most}: "
                "raise num_beams, or sample"
            )

    def unsupported(self) -> str:
        """List the settings that would change the tokens in transformers but are not supported here."""
        active = {n: v for n, v in self.extra.items() if n in NEUTRAL and v not in (None, [], {}, NEUTRAL[n])}
        return ", ".join(f"{name}={shown(value)}" for name, value in active.items())

    def lengths(self) -> tuple[int, int]:
        """Resolve the four length limits.

        Returns:
            The minimum and maximum number of tokens, including the start token. If the minimum exceeds the maximum,
            the maximum applies.

        Raises:
            ConfigError: a limit is not an integer in range.
        """
        for name, limits in LENGTH_LIMITS.items():
            if (value := getattr(self, name)) is not None:
                limits.check(f"generation: {name}", value)
        shortest = self.min_length or 0 if self.min_new_tokens is None else 1 + self.min_new_tokens
        if self.max_new_tokens is not None:
            longest = 1 + self.max_new_tokens
        else:
            longest = self.max_length or 1 + DEFAULT_NEW_TOKENS
        return shortest, longest

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text, always as a list."""
        return _as_list(self.eos_token_id)

    @property
    def forced_eos_token_ids(self) -> list[int]:
        """The ids that end a text of maximum length, always as a list."""
        return _as_list(self.forced_eos_token_id)

    @property
    def fill_token_id(self) -> int:
        """Fills rows of beam search after their end: the padding id, but the end token if the padding id is 0."""
        return self.pad_token_id or [*self.eos_token_ids, 0][0]


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]
