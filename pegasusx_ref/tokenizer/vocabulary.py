"""What the files of a tokenizer hold: the reserved ids, the added tokens, and the interface of both kinds of file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

OFFSET = 103  # added to SentencePiece's ids; pre-training reserved the ids below
UNKNOWN = 2 + OFFSET
SPECIAL_TOKENS = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, OFFSET)), "<unk>"]
MAX_ID = 2**24  # the largest vocabulary of a configuration
MAX_LENGTH = 1000  # characters of a token: a hostile file could otherwise fill the memory when a text is decoded


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before the text is split into pieces, and is never split.

    Attributes:
        content: its text.
        lstrip: whether it takes the whitespace in front of it.
        rstrip: whether it takes the whitespace behind it.
        single_word: whether it is found between spaces only.
        normalized: whether it is found in the normalized text; tokenizer.json only.
        special: whether decoding can skip it.
    """

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as tokenizer_config.json has them."""
        return asdict(self)


class Vocabulary(Protocol):
    """Text to ids and back, by one file. It is never changed, so that threads may share it, and can be pickled.

    Attributes:
        file_name: of the file in a checkpoint.
        size: number of ids, without the added tokens.
        sides: "truncation_side" and "padding_side", as far as the file has them.
        added_tokens: those of the files, by id.
        special_ids: the ids that decoding can skip.
    """

    file_name: str
    size: int
    sides: dict[str, str]
    added_tokens: dict[int, AddedToken]
    special_ids: list[int]

    @property
    def token_ids(self) -> Sequence[int]:
        """All ids, in ascending order; those of added tokens may have gaps."""

    def text_to_ids(self, text: str) -> list[int]:
        """Convert a text to ids, without an end token."""

    def ids_to_text(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Convert ids to a text; those without a token are left out."""

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, or None if there is none."""

    def token_to_id(self, token: str) -> int:
        """Return the id of a token, or that of <unk>."""

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
