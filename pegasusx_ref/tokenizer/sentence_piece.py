"""The vocabulary of spiece.model: SentencePiece unigrams after 106 reserved ids, then the added tokens."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from pegasusx_ref.checkpoint.file_names import SPIECE_MODEL
from pegasusx_ref.errors import CheckpointError
from pegasusx_ref.files.reading import read_bytes, reading
from pegasusx_ref.tokenizer.added_tokens import AddedTokens, with_ids
from pegasusx_ref.tokenizer.vocabulary import OFFSET, SPECIAL_TOKENS, UNKNOWN, AddedToken

MAX_MODEL_SIZE = 2**24  # bytes; the published one has 1.9 million
EOS_ID, UNKNOWN_ID = 1, UNKNOWN - OFFSET  # SentencePiece's
RESERVED = {token: i for i, token in enumerate(SPECIAL_TOKENS)}


class SentencePieceVocabulary:
    """The vocabulary of spiece.model; see `Vocabulary`.

    The reserved tokens typed in a text are ordinary text, the added tokens are not.

    Args:
        path: of the file.
        added_tokens: of `read_added_tokens`.

    Raises:
        CheckpointError: the file is missing, is not a SentencePiece model, or has other special ids; or an added token
            has another one's id.

    Source: HF `PegasusTokenizer` before transformers 5.
    """

    file_name = SPIECE_MODEL

    def __init__(self, path: Path, added_tokens: Iterable[tuple[int | None, AddedToken]] = ()) -> None:
        from sentencepiece import SentencePieceProcessor

        with reading(path, "a SentencePiece model", CheckpointError):
            self._model = read_bytes(path, MAX_MODEL_SIZE)
            self._pieces: Any = SentencePieceProcessor(model_proto=self._model)
            self._pieces.id_to_piece(list(range(self._pieces.get_piece_size())))  # fails where one is not UTF-8
        layout = (self._pieces.eos_id(), self._pieces.unk_id())
        if layout != (EOS_ID, UNKNOWN_ID):
            raise CheckpointError(
                f"{path}: eos and unk have the ids {layout}, but a Pegasus model has (1, 2): "
                "train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1"
            )
        self.sides: dict[str, str] = {}
        self.size = int(self._pieces.get_piece_size()) + OFFSET
        with reading(path.parent, "a tokenizer", CheckpointError):
            self.added_tokens = with_ids(added_tokens, self.size, self._known_id)
        self.token_ids = [*range(self.size), *(i for i in sorted(self.added_tokens) if i >= self.size)]
        self.special_ids = [*range(UNKNOWN + 1), *(i for i, token in self.added_tokens.items() if token.special)]
        self._finder = AddedTokens(self.added_tokens)

    def text_to_ids(self, text: str) -> list[int]:
        """Convert a text to ids; see `Vocabulary`."""
        ids: list[int] = []
        for part in self._finder.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += [i + OFFSET if i > 1 else i for i in self._pieces.encode_as_ids(part)]
        return ids

    def ids_to_text(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Convert ids to a text; see `Vocabulary`. Added tokens stand between spaces."""
        if skip_special_tokens:
            special = set(self.special_ids)
            ids = [i for i in ids if i not in special]
        parts: list[str] = []
        for added, group in groupby(ids, key=self.added_tokens.__contains__):
            run = list(group)
            parts += [self.added_tokens[i].content for i in run] if added else [self._decode(run).strip()]
        return " ".join(part for part in parts if part)

    def _decode(self, ids: Iterable[int]) -> str:
        parts: list[str] = []
        for reserved, run in groupby((i for i in ids if i < self.size), key=lambda i: i <= UNKNOWN):
            if reserved:
                parts += [SPECIAL_TOKENS[i] for i in run]
            else:
                pieces = [i - OFFSET for i in run]
                # SentencePiece drops the leading space of what it decodes, which is right only at the start.
                space = " " if parts and self._pieces.id_to_piece(pieces[0]).startswith("▁") else ""
                parts.append(space + self._pieces.decode_ids(pieces))
        return "".join(parts)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id; see `Vocabulary`."""
        if token_id in self.added_tokens:
            return self.added_tokens[token_id].content
        if token_id >= self.size:
            return None
        return SPECIAL_TOKENS[token_id] if token_id <= UNKNOWN else str(self._pieces.id_to_piece(token_id - OFFSET))

    def token_to_id(self, token: str) -> int:
        """Return the id of a token; see `Vocabulary`."""
        added = self._finder.ids.get(token)
        known = self._known_id(token) if added is None else added
        return UNKNOWN if known is None else known

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        return {str(self.id_to_token(i)): i for i in self.token_ids}

    def to_bytes(self) -> bytes:
        """Return the content of spiece.model."""
        return self._model

    def _known_id(self, token: str) -> int | None:
        if token in RESERVED:
            return RESERVED[token]
        piece = self._pieces.piece_to_id(token)
        return piece + OFFSET if piece > UNKNOWN_ID else None
