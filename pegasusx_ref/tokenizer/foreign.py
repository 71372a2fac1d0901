"""A tokenizer of transformers in place of ours, as `pipeline(tokenizer=)` takes it."""

from collections.abc import Sequence, Sized
from typing import Any

from pegasusx_ref.errors import InputTypeError, shown
from pegasusx_ref.tokenizer.batching import BatchEncoding

NEEDED = ("__call__", "batch_decode", "decode", "pad")


class ForeignTokenizer:
    """What a pipeline calls of a tokenizer, by a tokenizer of transformers.

    Args:
        tokenizer: of transformers.

    Raises:
        InputTypeError: an object without a tokenizer's methods.
    """

    def __init__(self, tokenizer: Any) -> None:
        is_sized = isinstance(tokenizer, Sized)
        if isinstance(tokenizer, type) or not is_sized or any(not hasattr(tokenizer, name) for name in NEEDED):
            raise InputTypeError(
                f"{shown(tokenizer)} is no tokenizer: pass a PegasusTokenizer, one of transformers, or a folder"
            )
        self.tokenizer = tokenizer
        self.batch_decode, self.decode = tokenizer.batch_decode, tokenizer.decode

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {type(self.tokenizer).__name__}>"

    def __len__(self) -> int:
        return len(self.tokenizer)

    @property
    def truncation_side(self) -> str:
        """The side at which long texts are cut."""
        return str(getattr(self.tokenizer, "truncation_side", "right"))

    def __call__(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        truncation: bool = False,
        padding: bool = False,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Convert texts to model inputs; see `PegasusTokenizer.__call__`."""
        rows = [self.tokenizer(text, truncation=False)["input_ids"] for text in texts]
        cut = [0] * len(rows)
        for i, text in enumerate(texts):
            if truncation and max_length is not None and len(rows[i]) > max_length:
                whole, rows[i] = rows[i], self.tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
                cut[i] = len(whole) - len(rows[i])
        batch = self.tokenizer.pad({"input_ids": rows}, padding=padding, return_tensors=return_tensors)
        return BatchEncoding({name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}, cut)
