"""A tokenizer's settings: tokenizer_config.json, and the files that older versions of transformers write beside it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pegasusx_ref.checkpoint.file_names import ADDED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG
from pegasusx_ref.checkpoint.settings import read_settings
from pegasusx_ref.errors import CheckpointError, InputError, shown
from pegasusx_ref.files.reading import reading
from pegasusx_ref.tokenizer.added_tokens import decoder_entries, read_added_tokens, special_tokens
from pegasusx_ref.tokenizer.options import NO_LIMIT, as_limit, as_side
from pegasusx_ref.tokenizer.vocabulary import OFFSET, SPECIAL_TOKENS, AddedToken

FIXED_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
SIDES = ("truncation_side", "padding_side")


@dataclass(frozen=True)
class TokenizerSettings:
    """The checked entries of tokenizer_config.json.

    Attributes:
        entries: all of them, which `save_pretrained` writes back.
        model_max_length: the length for `truncation=True` without max_length.
        sides: "truncation_side" and "padding_side", as far as the file has them.
        clean_up_tokenization_spaces: whether `decode` does.
        added_tokens: of `read_added_tokens`.
    """

    entries: Mapping[str, Any]
    model_max_length: int
    sides: dict[str, str]
    clean_up_tokenization_spaces: bool
    added_tokens: list[tuple[int | None, AddedToken]]

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Self:
        """Check the entries of tokenizer_config.json.

        Raises:
            CheckpointError: an entry is invalid, or belongs to another tokenizer.
        """
        if entries.get("offset", OFFSET) != OFFSET:
            raise CheckpointError(f"offset={shown(entries['offset'])}, but PEGASUS-X checkpoints have {OFFSET}")
        for name, token in FIXED_TOKENS.items():
            value = entries.get(name, token)
            value = value.get("content") if isinstance(value, dict) else value
            if value not in (None, token):
                raise CheckpointError(f"{name}={shown(value)}, but PEGASUS-X checkpoints have {token!r}")
        mask = entries.get("mask_token")
        mask = mask.get("content") if isinstance(mask, dict) else mask
        if mask is not None and mask not in SPECIAL_TOKENS:
            raise CheckpointError(f"mask_token={shown(mask)}, but PEGASUS-X checkpoints have '<mask_2>'")
        clean_up = entries.get("clean_up_tokenization_spaces")
        if not isinstance(clean_up, bool | None):
            raise CheckpointError(f"clean_up_tokenization_spaces={shown(clean_up)} must be true or false")
        limit = entries.get("model_max_length")
        try:
            limit = NO_LIMIT if limit is None else as_limit("model_max_length", limit)
            sides = {name: as_side(name, entries[name]) for name in SIDES if entries.get(name) is not None}
        except InputError as error:
            raise CheckpointError(str(error)) from error
        return cls(entries, limit, sides, bool(clean_up), read_added_tokens(entries))

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read tokenizer_config.json, special_tokens_map.json and added_tokens.json, as far as they exist.

        As in transformers, the latter two count only where the first one has no `added_tokens_decoder`.

        Raises:
            CheckpointError: a file is corrupt, or belongs to another tokenizer.
        """
        path = folder / TOKENIZER_CONFIG
        config = _entries(path)
        with reading(path, "a tokenizer's settings", CheckpointError):
            settings = cls.from_entries(config)
        if "added_tokens_decoder" in config:
            return settings
        path = folder / SPECIAL_TOKENS_MAP
        with reading(path, "a map of special tokens", CheckpointError):
            config = config | _entries(path)
            settings = cls.from_entries(config)
        path = folder / ADDED_TOKENS
        with reading(path, "tokens with their ids", CheckpointError):
            if added := _entries(path):
                special = [token.content for token in special_tokens(config)]
                settings = cls.from_entries(config | {"added_tokens_decoder": decoder_entries(added, special)})
        return settings


def _entries(path: Path) -> dict[str, Any]:
    return read_settings(path) if os.path.lexists(path) else {}
