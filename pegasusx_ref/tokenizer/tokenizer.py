"""The Pegasus tokenizer: SentencePiece unigrams after 106 reserved ids. [spec 2]"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Unpack

from pegasusx_ref.checkpoint.file_names import TOKENIZER_CONFIG
from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.checkpoint.location import locate
from pegasusx_ref.errors import CheckpointError, InputError, InputTypeError, OutputError, shown
from pegasusx_ref.files.json_files import json_text
from pegasusx_ref.files.reading import as_path, reading
from pegasusx_ref.files.writing import replacing_all
from pegasusx_ref.tokenizer.added_tokens import by_text
from pegasusx_ref.tokenizer.batching import EOS, PAD, BatchEncoding, as_list, encode_batch, integers
from pegasusx_ref.tokenizer.options import NO_LIMIT, EncodingOptions, as_flag, as_limit, as_side
from pegasusx_ref.tokenizer.sentence_piece import SentencePieceVocabulary
from pegasusx_ref.tokenizer.settings import TokenizerSettings
from pegasusx_ref.tokenizer.tokenizer_json import TokenizerJsonVocabulary
from pegasusx_ref.tokenizer.vocabulary import OFFSET, UNKNOWN, Vocabulary

VOCABULARIES = (SentencePieceVocabulary, TokenizerJsonVocabulary)  # the first file that exists is read
CLEANED_UP = [*((f" {mark}", mark) for mark in ".?!,"), (" ' ", "'")]
CLEANED_UP += [(f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")]


class PegasusTokenizer:
    """Text to token ids and back, by the spiece.model or the tokenizer.json of a checkpoint.

    With spiece.model, the reserved tokens that are typed in a text, such as </s>, are ordinary text; with
    tokenizer.json they become their ids, as in transformers. Added tokens are never split. Threads may share a
    tokenizer.

    Args:
        vocab_file: the path of spiece.model, or of a tokenizer.json.
        model_max_length: the length for `truncation=True` without max_length; None for that of `config`.
        config: entries of tokenizer_config.json, which `save_pretrained` writes back: added tokens, and more.
        truncation_side: "right" or "left", where long texts are cut; None for that of the files.
        padding_side: "right" or "left", where short texts are padded; None for that of the files.

    Raises:
        CheckpointError: the file is missing, is not one of a tokenizer, or is of another model.
        ExtraError: tokenizer.json needs the extra "hub".
        InputError: an invalid argument.

    Attributes:
        truncation_side: see the argument.
        padding_side: see the argument.
        model_max_length: see the argument.
    """

    model_input_names = ("input_ids", "attention_mask")
    pad_token, eos_token, unk_token = "<pad>", "</s>", "<unk>"
    pad_token_id, eos_token_id, unk_token_id = PAD, EOS, UNKNOWN

    def __init__(
        self,
        vocab_file: str | Path,
        model_max_length: int | None = None,
        config: Mapping[str, Any] | TokenizerSettings | None = None,
        *,
        truncation_side: str | None = None,
        padding_side: str | None = None,
    ) -> None:
        self.vocab_file = as_path(vocab_file)
        if not isinstance(config, TokenizerSettings):
            with reading("config", "entries of tokenizer_config.json", CheckpointError):
                if not isinstance(config, Mapping | None):
                    raise TypeError(f"a {type(config).__name__}, not a dictionary")
                config = TokenizerSettings.from_entries(config or {})
        self._settings = config
        given = {"truncation_side": truncation_side, "padding_side": padding_side}
        sides = {name: as_side(name, side) for name, side in given.items() if side is not None}
        limit = config.model_max_length if model_max_length is None else model_max_length
        self.model_max_length = as_limit("model_max_length", limit)
        is_json = self.vocab_file.suffix == ".json"
        self._vocabulary: Vocabulary = VOCABULARIES[is_json](self.vocab_file, config.added_tokens)
        sides = {"truncation_side": "right", "padding_side": "right"} | self._vocabulary.sides | config.sides | sides
        self.truncation_side, self.padding_side = sides["truncation_side"], sides["padding_side"]

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        model_max_length: int | None = None,
        truncation_side: str | None = None,
        padding_side: str | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load the tokenizer of a checkpoint: spiece.model, or else tokenizer.json, and the settings beside it.

        Args:
            name: a folder, or a name of the Hugging Face Hub. A PEFT adapter's folder leads to its base model's where
                it has no tokenizer.
            model_max_length: in place of that of tokenizer_config.json.
            truncation_side: in place of that of tokenizer_config.json.
            padding_side: in place of that of tokenizer_config.json.
            hub: see `HubOptions`.

        Raises:
            CheckpointError: a file is missing, corrupt, or belongs to another tokenizer.
            ExtraError: tokenizer.json needs the extra "hub".
            InputError: an invalid argument.
        """
        folder = locate(name, "tokenizer", hub).folder
        for vocabulary in VOCABULARIES:
            if os.path.lexists(folder / vocabulary.file_name):
                return cls(
                    folder / vocabulary.file_name,
                    model_max_length,
                    TokenizerSettings.from_folder(folder),
                    truncation_side=truncation_side,
                    padding_side=padding_side,
                )
        if not os.path.lexists(folder):
            raise CheckpointError(f"{folder}: no such folder: pass the folder of a checkpoint")
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: is a file: pass the folder that contains it")
        files = " or ".join(vocabulary.file_name for vocabulary in VOCABULARIES)
        raise CheckpointError(f"{folder}: no tokenizer: copy {files} from the original checkpoint into the folder")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the file that was loaded, and tokenizer_config.json; create the folder if it does not exist.

        Raises:
            OutputError: a file cannot be written, or the folder has another tokenizer's file of the other kind.
        """
        folder = as_path(folder)
        file_name = self._vocabulary.file_name
        if folder.absolute() != self.vocab_file.parent.absolute():
            for other in (vocabulary.file_name for vocabulary in VOCABULARIES if vocabulary.file_name != file_name):
                if os.path.lexists(folder / other):
                    raise OutputError(f"{folder / other}: belongs to another tokenizer: remove it, or save elsewhere")
        added = {str(i): token.to_dict() for i, token in self._vocabulary.added_tokens.items()}
        written = {
            "tokenizer_class": "PegasusTokenizer",
            "offset": OFFSET,
            "model_max_length": self.model_max_length,
            "truncation_side": self.truncation_side,
            "padding_side": self.padding_side,
            "added_tokens_decoder": added,
        }
        with replacing_all([folder / file_name, folder / TOKENIZER_CONFIG]) as (vocabulary_file, config):
            vocabulary_file.write_bytes(self._vocabulary.to_bytes())
            config.write_text(json_text(by_text(self._settings.entries) | written), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids without the added tokens: pieces and reserved ids."""
        return self._vocabulary.size

    def __len__(self) -> int:
        """Return the number of tokens, with the added ones."""
        return len(self._vocabulary.token_ids)

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `skip_special_tokens` skips: the reserved ones, and the added tokens that are special."""
        return list(self._vocabulary.special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens of `all_special_ids`."""
        return list(self.convert_ids_to_tokens(self.all_special_ids))

    def text_to_ids(self, text: str) -> list[int]:
        """Convert a text to ids, without an end token. [spec 2.1]

        Args:
            text: any text; SentencePiece normalizes it (nmt_nfkc turns newlines into spaces).

        Returns:
            Ids from 105 (unknown) upward; consecutive unknown characters become one id. With tokenizer.json, also those
            of reserved tokens in the text.

        Raises:
            InputError: not a string.

        Source: HF `PegasusTokenizer` before transformers 5 (spiece.model) and of transformers 5 (tokenizer.json); Flax
            `pegasus/ops`.
        """
        return self._vocabulary.text_to_ids(as_text(text))

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        max_length: int | None = None,
        truncation: bool | str | None = None,
        **options: Any,
    ) -> Any:
        """Convert a text, or a pair, to ids that end with </s>; see `__call__`, which has the same options."""
        return self(text, text_pair, max_length=max_length, truncation=truncation, **options)["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        text_pair: str | Sequence[str] | None = None,
        *,
        text_target: str | Sequence[str] | None = None,
        max_length: int | None = None,
        truncation: bool | str | None = None,
        padding: bool | str | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Convert texts to model inputs.

        Args:
            text: a text or several; None with `text_target` alone.
            text_pair: the same number of texts, appended to them: A B </s>.
            text_target: the same number of summaries, encoded as ``labels``, or as ``input_ids`` if `text` is None.
            max_length: maximum number of ids, including </s>; longer texts are truncated at `truncation_side`.
            truncation: False to keep long texts whole; True to truncate to model_max_length if max_length is None.
                The longer text of a pair is truncated first.
            padding: True or "longest", "max_length", or False; None pads batches that are converted to arrays.
            padding_side: in place of the attribute.
            pad_to_multiple_of: round the padded length up to a multiple of it.
            add_special_tokens: False for no </s>.
            return_tensors: "np" for NumPy arrays, "pt" for torch, None for lists.
            return_attention_mask: False for none.
            return_length: True for the numbers of ids, padding included, as ``length`` (B,).

        Returns:
            ``input_ids`` and ``attention_mask`` (B, T), flat lists for a single text without return_tensors; the
            attribute `num_truncated_tokens` is the number of tokens dropped from each text.

        Raises:
            InputError: not texts, no texts, or inconsistent arguments.
        """
        is_padded = isinstance(padding, str) and padding == "max_length"
        is_truncated = isinstance(truncation, bool | str) and truncation in (True, "longest_first")
        if max_length is None and (is_padded or is_truncated) and self.model_max_length < NO_LIMIT:
            max_length, truncation = self.model_max_length, is_truncated
        options = EncodingOptions(
            max_length=max_length,
            truncation=truncation,
            truncation_side=self.truncation_side,
            padding=padding,
            padding_side=self.padding_side if padding_side is None else padding_side,
            pad_to_multiple_of=pad_to_multiple_of,
            add_special_tokens=add_special_tokens,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
            return_length=return_length,
        )
        if text is None:
            if text_target is None or text_pair is not None:
                raise InputError("no texts: pass text, or text_target alone")
            return encode_batch(self.text_to_ids, text_target, None, options)
        batch = encode_batch(self.text_to_ids, text, text_pair, options)
        if text_target is not None:
            batch["labels"] = encode_batch(self.text_to_ids, text_target, None, options)["input_ids"]
        return batch

    def decode(
        self,
        token_ids: Iterable[int] | int,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Convert ids to a text. [spec 2.3]

        Args:
            token_ids: one id or a sequence; ids outside the vocabulary decode to the empty text, as in HF.
            skip_special_tokens: skip `all_special_ids`: 0 to 105 (105 is `<unk>`) and special added tokens.
            clean_up_tokenization_spaces: remove spaces in front of .?!, and of English contractions; None for the
                setting of tokenizer_config.json, or False.

        Raises:
            InputError: a negative id, such as -100 from labels.
        """
        ids = integers(token_ids, "expected a token id or a flat sequence of them")
        if ids and min(ids) < 0:
            raise InputError(f"token id {min(ids)} is negative: replace ignored labels before decoding")
        text = self._vocabulary.ids_to_text(ids, as_flag("skip_special_tokens", skip_special_tokens))
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self._settings.clean_up_tokenization_spaces
        clean_up = as_flag("clean_up_tokenization_spaces", clean_up_tokenization_spaces)
        for spaced, plain in CLEANED_UP if clean_up else ():
            text = text.replace(spaced, plain)
        return text

    def batch_decode(
        self,
        sequences: Iterable[Iterable[int]],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Decode several sequences of ids; see `decode`."""
        rows = as_list(sequences, "expected sequences of ids")
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in rows]

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
        tokens = [self._vocabulary.id_to_token(i) if i >= 0 else None for i in ids]
        if None in tokens:
            end = self._vocabulary.token_ids[-1] + 1
            raise InputError(f"token id {ids[tokens.index(None)]} is outside the vocabulary [0, {end})")
        return tokens

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """Return the id of one token, or the ids of several; unknown tokens get 105, `<unk>`."""
        if isinstance(tokens, str):
            return self.convert_tokens_to_ids([tokens])[0]
        tokens = [as_text(token) for token in as_list(tokens, "expected a token or several")]
        return [self._vocabulary.token_to_id(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id, the added ones included."""
        return self._vocabulary.get_vocab()


def as_text(text: Any) -> str:
    """Check a text, or a token, and replace lone surrogates, which Python strings may hold but UTF-8 cannot, by "?".

    Raises:
        InputTypeError: not a string.
    """
    if not isinstance(text, str):
        raise InputTypeError(f"expected a text, got a {type(text).__name__}: {shown(text)}")
    return text.encode("utf-8", "replace").decode("utf-8")
