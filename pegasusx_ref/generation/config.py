"""The defaults of `generate`: generation_config.json, then config.json. [spec 12]"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pegasusx_ref.config import PegasusXConfig
from pegasusx_ref.errors import ConfigError, InputError
from pegasusx_ref.files import read_json

DEFAULT_NEW_TOKENS = 20
# Settings of transformers that change which token is chosen, with the value at which they do not.
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "do_sample": False,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "forced_bos_token_id": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "stop_strings": None,
}


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to decode, under the names of transformers' generation_config.json. [spec 12.1]

    Attributes:
        max_length: tokens at the most, the start token counted in; None leaves it to max_new_tokens.
        min_length: tokens at the least, the start token counted in.
        max_new_tokens: tokens at the most, the start token not counted; goes before max_length.
        min_new_tokens: tokens at the least, the start token not counted; goes before min_length.
        num_beams: beams; this version decodes greedily, with 1.
        decoder_start_token_id: what decoding starts from.
        eos_token_id: the id, or the ids, that end a text; None: only its length ends it.
        pad_token_id: fills up the rows that end before others.
        forced_eos_token_id: comes last in a text that reaches max_length without an end.
        extra: keys of the file that have no field here, written back as they are.
    """

    max_length: int | None = None
    min_length: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    num_beams: int | None = None
    decoder_start_token_id: int = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int = 0
    forced_eos_token_id: int | list[int] | None = None
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_model_config(cls, config: PegasusXConfig) -> Self:
        """Take what config.json says of generation, which older checkpoints hold there."""
        values = config.to_dict()
        return cls._read({name: values[name] for name in values if name in _fields(cls) or name in NEUTRAL})

    @classmethod
    def from_pretrained(cls, folder: Path, config: PegasusXConfig) -> Self:
        """Read generation_config.json, or config.json where there is none.

        A file without an end token has none; the start and padding tokens that it lacks are those of config.json.

        Raises:
            CheckpointError: the file is not JSON.
        """
        path = folder / "generation_config.json"
        if not path.exists():
            return cls.from_model_config(config)
        defaults = {"decoder_start_token_id": config.decoder_start_token_id, "pad_token_id": config.pad_token_id}
        written = {name: value for name, value in read_json(path).items() if value is not None}
        return cls._read(defaults | {"eos_token_id": None} | written)

    @classmethod
    def _read(cls, values: dict[str, Any]) -> Self:
        fields = _fields(cls)
        extra = {name: value for name, value in values.items() if name not in fields}
        return cls(**{name: value for name, value in values.items() if name in fields}, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """Give the entries of a generation_config.json that transformers reads."""
        values = dataclasses.asdict(self)
        extra: dict[str, Any] = values.pop("extra")
        return extra | {name: value for name, value in values.items() if value is not None}

    def updated(self, **changes: Any) -> Self:
        """Copy with the changes that are not None."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    def check_ids(self, vocab_size: int) -> None:
        """Check that the token ids are some of the model's.

        Args:
            vocab_size: V of the model.

        Raises:
            ConfigError: one is not.
        """
        for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            for token_id in _as_list(value):
                if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
                    raise ConfigError(
                        f"generation: {name}={value!r} must be a token id in [0, vocab_size={vocab_size})"
                    )

    def not_followed(self) -> str:
        """List the settings that would change the tokens and that this version, which decodes greedily, leaves out."""
        asked = self.extra | {"num_beams": self.num_beams}
        active = {n: asked[n] for n, neutral in NEUTRAL.items() if asked.get(n) not in (None, [], {}, neutral)}
        return ", ".join(f"{name}={value!r}" for name, value in active.items())

    def lengths(self) -> tuple[int, int]:
        """Resolve the four length limits.

        Returns:
            The least and the greatest number of tokens, the start token counted in. Where the least is above the
            greatest, the greatest decides.

        Raises:
            InputError: a limit is not a whole number in range.
        """
        for name, least in (("max_length", 2), ("min_length", 0), ("max_new_tokens", 1), ("min_new_tokens", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(f"{name}={value!r} must be a whole number of at least {least}")
        shortest = self.min_length or 0 if self.min_new_tokens is None else 1 + self.min_new_tokens
        if self.max_new_tokens is not None:
            longest = 1 + self.max_new_tokens
        else:
            longest = self.max_length or 1 + DEFAULT_NEW_TOKENS
        return shortest, longest

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a text, as a list even where there is one."""
        return _as_list(self.eos_token_id)

    @property
    def forced_eos_token_ids(self) -> list[int]:
        """The ids that end a text of the greatest length, as a list even where there is one or none."""
        return _as_list(self.forced_eos_token_id)


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]


def _fields(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)} - {"extra"}
