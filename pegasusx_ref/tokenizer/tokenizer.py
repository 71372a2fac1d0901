"""The Pegasus tokenizer: SentencePiece unigrams after 106 reserved ids. [spec 2]"""

import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from pegasusx_ref.checkpoint.settings import read_settings
from pegasusx_ref.errors import CheckpointError, InputError, shown
from pegasusx_ref.files.json_files import json_text
from pegasusx_ref.files.reading import as_path, read_bytes, reading
from pegasusx_ref.files.writing import replacing_all
from pegasusx_ref.tokenizer.batching import EOS, NO_LIMIT, PAD, BatchEncoding, as_list, encode_batch, integers

VOCAB_FILE = "spiece.model"
MAX_MODEL_SIZE = 2**24  # bytes; the published one has 1.9 million
OFFSET = 103  # added to SentencePiece's ids; pre-training reserved the ids below
UNKNOWN = 2 + OFFSET
SPECIAL_TOKENS = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, OFFSET)), "<unk>"]


class PegasusTokenizer:
    """Text to token ids and back, by the SentencePiece model of a checkpoint.

    Special tokens typed in a text are ordinary text: only the tokenizer itself adds special tokens.
    Threads may share a tokenizer.

    Args:
        vocab_file: the path of spiece.model.
        model_max_length: the length for `truncation=True` without max_length.
        config: entries of tokenizer_config.json, which `save_pretrained` writes back.

    Raises:
        CheckpointError: the file is missing, is not a SentencePiece model, or has other special ids.
    """

    model_input_names = ("input_ids", "attention_mask")
    pad_token, eos_token, unk_token = "<pad>", "</s>", "<unk>"
    pad_token_id, eos_token_id, unk_token_id = PAD, EOS, UNKNOWN
    all_special_ids = range(UNKNOWN + 1)

    def __init__(
        self, vocab_file: str | Path, model_max_length: int = NO_LIMIT, config: dict[str, Any] | None = None
    ) -> None:
        from sentencepiece import SentencePieceProcessor

        self.vocab_file = as_path(vocab_file)
        self.model_max_length = model_max_length
        self._config = config or {}
        if not os.path.lexists(self.vocab_file):
            raise CheckpointError(
                f"{self.vocab_file}: no such file; the tokenizer needs the checkpoint's SentencePiece model "
                "(transformers 5 saves tokenizer.json instead: copy spiece.model from the original checkpoint)"
            )
        with reading(self.vocab_file, "a SentencePiece model", CheckpointError):
            self._model = read_bytes(self.vocab_file, MAX_MODEL_SIZE)
            self._pieces: Any = SentencePieceProcessor(model_proto=self._model)
            self._pieces.id_to_piece(list(range(self._pieces.get_piece_size())))  # fails where one is not UTF-8
        layout = (self._pieces.eos_id(), self._pieces.unk_id())
        if layout != (EOS, UNKNOWN - OFFSET):
            raise CheckpointError(
                f"{self.vocab_file}: eos and unk have the ids {layout}, but a Pegasus model has (1, 2): "
                "train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load spiece.model, and tokenizer_config.json if it exists, from a checkpoint folder.

        Raises:
            CheckpointError: a file is missing, corrupt, or belongs to another tokenizer.
        """
        folder = as_path(folder)
        config_file = folder / "tokenizer_config.json"
        config = read_settings(config_file) if os.path.lexists(config_file) else {}
        if config.get("offset", OFFSET) != OFFSET:
            raise CheckpointError(
                f"{config_file}: offset={shown(config['offset'])}, but PEGASUS-X checkpoints have {OFFSET}"
            )
        limit = config.get("model_max_length")
        limit = NO_LIMIT if limit is None else limit
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 1 <= limit < float("inf"):
            raise CheckpointError(f"{config_file}: model_max_length={shown(limit)} must be a number of at least 1")
        return cls(folder / VOCAB_FILE, int(limit), config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write spiece.model and tokenizer_config.json; create the folder if it does not exist."""
        folder = as_path(folder)
        limit = {"model_max_length": self.model_max_length}
        fixed = {"tokenizer_class": "PegasusTokenizer", "offset": OFFSET}
        with replacing_all([folder / VOCAB_FILE, folder / "tokenizer_config.json"]) as (pieces, config):
            pieces.write_bytes(self._model)
            config.write_text(json_text(self._config | limit | fixed), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids: SentencePiece's pieces and the reserved ones."""
        return int(self._pieces.get_piece_size()) + OFFSET

    def __len__(self) -> int:
        return self.vocab_size

    def text_to_ids(self, text: str) -> list[int]:
        """Convert a text to ids, without an end token. [spec 2.1]

        Args:
            text: any text; SentencePiece normalizes it (nmt_nfkc turns newlines into spaces).

        Returns:
            Ids from 105 (unknown) upward; consecutive unknown characters become one id.

        Raises:
            InputError: not a string.

        Source: HF `PegasusTokenizer` before transformers 5; Flax `pegasus/ops`.
        """
        text = as_text(text)
        return [i + OFFSET if i > 1 else i for i in self._pieces.encode_as_ids(text)]

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        max_length: int | None = None,
        truncation: bool | str | None = None,
    ) -> list[int]:
        """Convert a text, or a pair, to ids that end with </s>; see `__call__`."""
        ids: list[int] = self(text, text_pair, max_length=max_length, truncation=truncation)["input_ids"]
        return ids

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        text_target: str | Sequence[str] | None = None,
        max_length: int | None = None,
        truncation: bool | str | None = None,
        padding: bool | str | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Convert texts to model inputs.

        Args:
            text: a text or several.
            text_pair: the same number of texts, appended to them: A B </s>.
            text_target: the same number of summaries, encoded as ``labels``.
            max_length: maximum number of ids, including </s>; longer texts are truncated at the end.
            truncation: False to keep long texts whole; True to truncate to model_max_length if max_length is None.
                The longer text of a pair is truncated first.
            padding: True or "longest", "max_length", or False; None pads batches that are converted to arrays.
            return_tensors: "np" for NumPy arrays, "pt" for torch, None for lists.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, T), flat lists for a single text without return_tensors; the
            attribute `num_truncated_tokens` is the number of tokens dropped from each text.

        Raises:
            InputError: not texts, no texts, or inconsistent arguments.
        """
        options: dict[str, Any] = {
            "max_length": max_length if max_length is not None or not truncation else self.model_max_length,
            "truncation": truncation,
            "padding": padding,
            "return_tensors": return_tensors,
        }
        batch = encode_batch(self.text_to_ids, text, text_pair, **options)
        if text_target is not None:
            batch["labels"] = encode_batch(self.text_to_ids, text_target, None, **options)["input_ids"]
        return batch

    def decode(self, token_ids: Iterable[int] | int, skip_special_tokens: bool = False) -> str:
        """Convert ids to a text. [spec 2.3]

        Args:
            token_ids: one id or a sequence; ids outside the vocabulary decode to the empty text, as in HF.
            skip_special_tokens: skip the ids 0 to 105 (105 is `<unk>`).

        Raises:
            InputError: a negative id, such as -100 from labels.
        """
        ids = integers(token_ids, "expected a token id or a flat sequence of them")
        if ids and min(ids) < 0:
            raise InputError(f"token id {min(ids)} is negative: replace ignored labels before decoding")
        if skip_special_tokens:
            ids = [i for i in ids if i > UNKNOWN]
        parts = []
        for special, run in groupby((i for i in ids if i < self.vocab_size), key=lambda i: i <= UNKNOWN):
            if special:
                parts += [SPECIAL_TOKENS[i] for i in run]
            else:
                pieces = [i - OFFSET for i in run]
                # SentencePiece drops the leading space of what it decodes, which is right only at the start.
                space = " " if parts and self._pieces.id_to_piece(pieces[0]).startswith("▁") else ""
                parts.append(space + self._pieces.decode_ids(pieces))
        return "".join(parts)

    def batch_decode(self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False) -> list[str]:
        """Decode several sequences of ids; see `decode`."""
        return [self.decode(ids, skip_special_tokens) for ids in as_list(sequences, "expected sequences of ids")]

    def tokenize(self, text: str) -> list[str]:
        """Split a text into pieces; "▁" marks a space."""
        return list(self.convert_ids_to_tokens(self.text_to_ids(text)))

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Return the token of one id, or the tokens of several.

        Raises:
            InputError: an id outside the vocabulary.
        """
        if not isinstance(ids, Iterable):
            return self.convert_ids_to_tokens([ids])[0]
        ids = integers(ids, "expected a token id or a flat sequence of them")
        if outside := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise InputError(f"token id {outside[0]} is outside the vocabulary [0, {self.vocab_size})")
        return [SPECIAL_TOKENS[i] if i <= UNKNOWN else self._pieces.id_to_piece(i - OFFSET) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Return the id of one token, or the ids of several; unknown tokens get 105, `<unk>`."""
        if isinstance(tokens, str):
            return self.convert_tokens_to_ids([tokens])[0]
        special = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
        tokens = [as_text(token) for token in as_list(tokens, "expected a token or several")]
        return [special[t] if t in special else self._pieces.piece_to_id(t) + OFFSET for t in tokens]

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        return {token: i for i, token in enumerate(self.convert_ids_to_tokens(range(self.vocab_size)))}


def as_text(text: Any) -> str:
    """Check a text, or a token, and replace lone surrogates, which Python strings may hold but UTF-8 cannot, by "?".

    Raises:
        InputError: not a string.
    """
    if not isinstance(text, str):
        raise InputError(f"expected a text, got a {type(text).__name__}: {shown(text)}")
    return text.encode("utf-8", "replace").decode("utf-8")
