"""The vocabulary of tokenizer.json, which transformers saves, by the tokenizers library. [spec 2.5]"""

import base64
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from pegasusx_ref.checkpoint.file_names import TOKENIZER_JSON
from pegasusx_ref.errors import CheckpointError, ExtraError, reason, shown
from pegasusx_ref.files.json_files import parse_object
from pegasusx_ref.files.reading import read_bytes, reading
from pegasusx_ref.tokenizer.vocabulary import MAX_LENGTH, UNKNOWN, AddedToken

MAX_SIZE = 2**26  # bytes; that of the published vocabulary has 7 million
REPLACED = ("suffix", "word_delimiter_token")  # the decoders that have them put spaces in their place
INSERTED = ("content", "prepend", "replacement", "prefix", "suffix")  # texts that steps put into a text
MAX_GROWTH = 1000  # times
LAYOUT = {0: "<pad>", 1: "</s>", UNKNOWN: "<unk>"}
SIDES = {"truncation": "truncation_side", "padding": "padding_side"}


class TokenizerJsonVocabulary:
    """The vocabulary of tokenizer.json; see `Vocabulary`. [spec 2.5]

    Reserved and added tokens that are typed in a text become their ids.

    Args:
        path: of the file.
        added_tokens: of `read_added_tokens`; those that the file does not have are added.

    Raises:
        CheckpointError: the file is missing, is not a tokenizer.json, or is of another model; or an added token has
            another one's id.
        ExtraError: the tokenizers library is not installed.

    Source: HF `TokenizersBackend` of transformers 5.
    """

    file_name = TOKENIZER_JSON

    def __init__(self, path: Path, added_tokens: Iterable[tuple[int | None, AddedToken]] = ()) -> None:
        try:
            import tokenizers
        except ImportError:
            raise ExtraError(
                f"{path} needs the tokenizers library: pip install 'pegasusx-ref[hub]', or copy spiece.model from the "
                "original checkpoint"
            ) from None

        with reading(path, "a tokenizer.json", CheckpointError), panics():
            text = read_bytes(path, MAX_SIZE)
            entries = parse_object(text)
            check_entries(entries)
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(text.decode("utf-8-sig"))
            given = {name: entries[key] for key, name in SIDES.items() if entries.get(key)}
            self.sides = {name: entry.get("direction", "right").lower() for name, entry in given.items()}
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self.size = self._tokenizer.get_vocab_size(with_added_tokens=False)
            for token in entries.get("added_tokens") or []:
                self._check_id(token["content"], token["id"])
        with reading(path.parent, "a tokenizer", CheckpointError), panics():
            known = self._tokenizer.token_to_id
            new = [(i, token) for i, token in added_tokens if i is not None or known(token.content) is None]
            self._tokenizer.add_tokens([tokenizers.AddedToken(**token.to_dict()) for _, token in new])
            for token_id, token in new:
                if token_id is not None:
                    self._check_id(token.content, token_id)
        self.token_ids = range(self._tokenizer.get_vocab_size(with_added_tokens=True))
        self.added_tokens = {
            i: AddedToken(**{field.name: getattr(token, field.name) for field in fields(AddedToken)})
            for i, token in sorted(self._tokenizer.get_added_tokens_decoder().items())
        }
        self.special_ids = [i for i, token in self.added_tokens.items() if token.special]

    def _check_id(self, token: str, given: Any) -> None:
        """Check the id of an added token: the library counts them, whatever a file has."""
        token_id = self._tokenizer.token_to_id(token)
        if given != token_id:
            raise CheckpointError(
                f"{shown(token)} has the id {shown(given)}, but {token_id} follows: added tokens without a piece have "
                "the ids after the last piece, without gaps"
            )

    def text_to_ids(self, text: str) -> list[int]:
        """Convert a text to ids; see `Vocabulary`."""
        with _use(), panics():
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def ids_to_text(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Convert ids to a text; see `Vocabulary`."""
        known = [i for i in ids if i in self.token_ids]  # the library has an error for ids of more than 32 bits
        with _use(), panics():
            return str(self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens))

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id; see `Vocabulary`."""
        return self._tokenizer.id_to_token(token_id) if token_id in self.token_ids else None

    def token_to_id(self, token: str) -> int:
        """Return the id of a token; see `Vocabulary`."""
        token_id = self._tokenizer.token_to_id(token)
        return UNKNOWN if token_id is None else int(token_id)

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def to_bytes(self) -> bytes:
        """Return the content of tokenizer.json, with all added tokens."""
        return bytes(self._tokenizer.to_str(pretty=True), "utf-8")


def check_entries(entries: dict[str, Any]) -> None:
    """Check the entries of tokenizer.json that the tokenizers library takes as they are.

    Raises:
        CheckpointError: of another model, or such that a short text could fill the memory.
    """
    model = entries["model"]
    if model.get("type") != "Unigram":
        raise CheckpointError(f"its model is {shown(model.get('type'))}, but a Pegasus tokenizer has 'Unigram'")
    layout = {i: model["vocab"][i][0] for i in LAYOUT} | {"unk": model.get("unk_id")}
    if layout != LAYOUT | {"unk": UNKNOWN}:
        raise CheckpointError(f"its ids 0, 1 and {UNKNOWN} are not <pad>, </s> and <unk>: it is of another model")
    if any(len(piece) > MAX_LENGTH for piece, _ in model["vocab"]):
        raise CheckpointError(f"a piece has more than {MAX_LENGTH:,} characters")
    names = ("normalizer", "pre_tokenizer", "decoder", "added_tokens")
    rest: list[tuple[str, Any]] = [(name, entries.get(name)) for name in names]
    growth = 1  # of a text by all steps, at most: each may put its text in front of every character
    while rest:
        name, value = rest.pop()
        if name == "precompiled_charsmap":
            _check_charsmap(base64.b64decode(value))
        elif isinstance(value, str):
            if len(value) > MAX_LENGTH:
                raise CheckpointError(f"{name} has more than {MAX_LENGTH:,} characters")
            if name in REPLACED and not value:
                raise CheckpointError(f"{name} is empty, and would be found between all characters")
            growth *= 1 + len(value) if name in INSERTED else 2 if value == "ByteLevel" else 1
            if growth > MAX_GROWTH:
                raise CheckpointError(f"its steps may make a text {MAX_GROWTH:,} times as long")
        elif isinstance(value, list):
            rest += [("added token" if name == "added_tokens" else name, entry) for entry in value]
        elif isinstance(value, dict) and name != "added token":
            rest += value.items()
        elif isinstance(value, dict) and len(str(value.get("content"))) > MAX_LENGTH:
            raise CheckpointError(f"an added token has more than {MAX_LENGTH:,} characters")


def _check_charsmap(content: bytes) -> None:
    """Check a character map: the size of a trie of 32-bit numbers, the trie, texts that end with a zero byte."""
    end = 4 + int.from_bytes(content[:4], "little")
    if len(content) < 4 or end > len(content) or end % 4:
        raise CheckpointError("precompiled_charsmap is damaged")
    content[end:].decode()
    if max(map(len, content[end:].split(b"\0"))) > MAX_LENGTH:
        raise CheckpointError(f"precompiled_charsmap replaces a character by more than {MAX_LENGTH:,} bytes")


@contextmanager
def panics() -> Iterator[None]:
    """Turn a panic of the tokenizers library, which is not an `Exception`, into a ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from error


@contextmanager
def _use() -> Iterator[None]:
    """Turn an error of the tokenizers library, by a damaged file, into one of this package."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"the tokenizer's tokenizer.json is damaged: {reason(error)}") from error
