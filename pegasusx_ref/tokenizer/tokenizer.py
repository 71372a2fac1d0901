"""The Pegasus tokenizer: SentencePiece unigrams behind 106 reserved ids. [spec 2]"""

import shutil
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import index
from pathlib import Path
from typing import Any, Self

from pegasusx_ref.checkpoint.files import read_json, replacing, write_json
from pegasusx_ref.errors import CheckpointError, InputError
from pegasusx_ref.tokenizer.batching import EOS, NO_LIMIT, PAD, BatchEncoding, encode_batch

VOCAB_FILE = "spiece.model"
OFFSET = 103  # how far SentencePiece's ids are moved up, to make room for what pre-training reserved
UNKNOWN = 2 + OFFSET
SPECIAL_TOKENS = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, OFFSET)), "<unk>"]


class PegasusTokenizer:
    """Text to ids and back, by the SentencePiece model of a checkpoint.

    Special tokens typed in a text are text: only the tokenizer itself adds them.

    Args:
        vocab_file: the path of spiece.model.
        model_max_length: tokens that `truncation=True` cuts to where no max_length is passed.
        config: entries of tokenizer_config.json to write back.

    Raises:
        CheckpointError: the file is missing, is no SentencePiece model, or has another layout.
    """

    model_input_names = ("input_ids", "attention_mask")
    pad_token, eos_token, unk_token = "<pad>", "</s>", "<unk>"
    pad_token_id, eos_token_id, unk_token_id = PAD, EOS, UNKNOWN
    all_special_ids = range(UNKNOWN + 1)

    def __init__(
        self, vocab_file: str | Path, model_max_length: int = NO_LIMIT, config: dict[str, Any] | None = None
    ) -> None:
        from sentencepiece import SentencePieceProcessor

        self.vocab_file = Path(vocab_file)
        self.model_max_length = model_max_length
        self._config = config or {}
        if not self.vocab_file.is_file():
            raise CheckpointError(
                f"{self.vocab_file}: no such file; the tokenizer needs the checkpoint's SentencePiece model "
                "(transformers 5 saves tokenizer.json in its place: copy spiece.model from the original checkpoint)"
            )
        try:
            self._pieces: Any = SentencePieceProcessor(model_file=str(self.vocab_file))
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{self.vocab_file}: not a SentencePiece model ({error})") from None
        layout = (self._pieces.eos_id(), self._pieces.unk_id())
        if layout != (EOS, UNKNOWN - OFFSET):
            raise CheckpointError(
                f"{self.vocab_file}: eos and unk have the ids {layout}, but in a Pegasus model (1, 2): "
                "train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load spiece.model, and tokenizer_config.json if any, from a model folder.

        Raises:
            CheckpointError: a file is missing, corrupt, or of another tokenizer.
        """
        folder = Path(folder)
        config_file = folder / "tokenizer_config.json"
        config = read_json(config_file) if config_file.exists() else {}
        if config.get("offset", OFFSET) != OFFSET:
            raise CheckpointError(f"{config_file}: offset={config['offset']}, but PEGASUS-X checkpoints have {OFFSET}")
        limit = config.get("model_max_length")
        limit = NO_LIMIT if limit is None else limit
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 1 <= limit < float("inf"):
            raise CheckpointError(f"{config_file}: model_max_length={limit!r} must be a number of at least 1")
        return cls(folder / VOCAB_FILE, int(limit), config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write spiece.model and tokenizer_config.json, making the folder where there is none."""
        folder = Path(folder)
        limit = {"model_max_length": self.model_max_length}
        fixed = {"tokenizer_class": "PegasusTokenizer", "offset": OFFSET}
        write_json(folder / "tokenizer_config.json", self._config | limit | fixed)
        if not (folder / VOCAB_FILE).exists() or not (folder / VOCAB_FILE).samefile(self.vocab_file):
            with replacing(folder / VOCAB_FILE) as unfinished:
                shutil.copyfile(self.vocab_file, unfinished)

    @property
    def vocab_size(self) -> int:
        """SentencePiece's pieces plus the reserved ids."""
        return int(self._pieces.get_piece_size()) + OFFSET

    def __len__(self) -> int:
        return self.vocab_size

    def text_to_ids(self, text: str) -> list[int]:
        """Cut a text into pieces and number them, without an end token. [spec 2.1]

        Args:
            text: any text; SentencePiece normalizes it (nmt_nfkc makes newlines spaces).

        Returns:
            Ids of 105 (unknown) or more; neighbouring unknown characters are one id.

        Raises:
            InputError: not a string.

        Source: HF `PegasusTokenizer` before transformers 5; Flax `pegasus/ops`.
        """
        if not isinstance(text, str):
            raise InputError(f"expected a text, got a {type(text).__name__}: {str(text)[:40]!r}")
        # A lone surrogate, which Python strings may hold but UTF-8 cannot, becomes a question mark.
        text = text.encode("utf-8", "replace").decode("utf-8")
        return [i + OFFSET if i > 1 else i for i in self._pieces.encode_as_ids(text)]

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        max_length: int | None = None,
        truncation: bool | str | None = None,
    ) -> list[int]:
        """Turn one text, or a pair, into ids that end with </s>; see `__call__`."""
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
        """Turn texts into model inputs.

        Args:
            text: a text or several.
            text_pair: as many texts to put after them: A B </s>.
            text_target: as many summaries, encoded as ``labels``.
            max_length: ids at the most, </s> counted in; longer texts are cut at their end.
            truncation: False to leave long texts whole; True to cut to model_max_length where there is no max_length.
                Of a pair the longer text is cut first.
            padding: True or "longest", "max_length", or False; where None, batches that become arrays are padded.
            return_tensors: "np" for NumPy arrays, "pt" for torch, None for lists.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, T), flat lists for a single text without return_tensors; its
            attribute `num_truncated_tokens` says how many tokens of each text were cut.

        Raises:
            InputError: not texts, no texts, or arguments that do not fit.
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
        """Turn ids back into a text. [spec 2.3]

        Args:
            token_ids: one id or a sequence of them; ids beyond the vocabulary decode to nothing, as in HF.
            skip_special_tokens: leave out the ids 0 to 105, of which `<unk>` is the last.

        Raises:
            InputError: a negative id, such as -100 from labels.
        """
        ids = _integers(token_ids)
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
                # SentencePiece drops the space in front of what it decodes, which is right at the start only.
                space = " " if parts and self._pieces.id_to_piece(pieces[0]).startswith("▁") else ""
                parts.append(space + self._pieces.decode_ids(pieces))
        return "".join(parts)

    def batch_decode(self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False) -> list[str]:
        """Decode several sequences of ids; see `decode`."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def tokenize(self, text: str) -> list[str]:
        """Cut a text into pieces, "▁" standing for a space."""
        return list(self.convert_ids_to_tokens(self.text_to_ids(text)))

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Name one id or several.

        Raises:
            InputError: an id outside the vocabulary.
        """
        if not isinstance(ids, Iterable):
            return self.convert_ids_to_tokens([ids])[0]
        ids = _integers(ids)
        if outside := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise InputError(f"token id {outside[0]} lies outside the vocabulary [0, {self.vocab_size})")
        return [SPECIAL_TOKENS[i] if i <= UNKNOWN else self._pieces.id_to_piece(i - OFFSET) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Number one token or several; what the vocabulary does not hold is 105, `<unk>`."""
        if isinstance(tokens, str):
            return self.convert_tokens_to_ids([tokens])[0]
        special = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
        return [special[t] if t in special else self._pieces.piece_to_id(t) + OFFSET for t in tokens]

    def get_vocab(self) -> dict[str, int]:
        """Give every token with its id."""
        return {token: i for i, token in enumerate(self.convert_ids_to_tokens(range(self.vocab_size)))}


def _integers(ids: Any) -> list[int]:
    """Take one id or several, as integers of Python, NumPy or torch.

    Raises:
        InputError: they are something else.
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    try:
        return [index(i) for i in ids] if isinstance(ids, Iterable) and not isinstance(ids, bytes) else [index(ids)]
    except TypeError:
        raise InputError(f"token ids are integers, one or a flat sequence of them, not {str(ids)[:40]!r}") from None
