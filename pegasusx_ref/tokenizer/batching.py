"""From the ids of single texts to model inputs: truncation, end tokens, padding, masks. [spec 2]"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any, Self

import numpy as np

from pegasusx_ref.errors import InputError, InputTypeError, shown
from pegasusx_ref.tokenizer.options import EncodingOptions

PAD, EOS = 0, 1
LEFT_PADDING = (
    "texts are padded on the left, which changes what the model computes, because positions are counted from the start "
    "of the row: pass padding_side='right'"
)


class BatchEncoding(dict[str, Any]):
    """Model inputs by name and as attributes, for ``model(**batch)``.

    Attributes:
        num_truncated_tokens: number of tokens dropped from each text by truncation.
    """

    def __init__(self, values: dict[str, Any], num_truncated_tokens: Sequence[int]) -> None:
        super().__init__(values)
        self.num_truncated_tokens = list(num_truncated_tokens)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any) -> Self:
        """Return itself: the model moves its inputs to its device. Exists so that transformers' examples run."""
        return self


def encode_batch(
    to_ids: Callable[[str], list[int]],
    text: str | Sequence[str],
    text_pair: str | Sequence[str] | None = None,
    options: EncodingOptions = EncodingOptions(),  # noqa: B008
) -> BatchEncoding:
    """Convert texts, or pairs of texts, to model inputs. [spec 2.2]

    Args:
        to_ids: converts one text to ids, without an end token.
        text: a text or several.
        text_pair: the same number of texts to append to them, or None.
        options: see `PegasusTokenizer.__call__`.

    Raises:
        InputError: not texts, no texts, or inconsistent arguments.
    """
    texts, pairs = list_of_texts(text), None if text_pair is None else list_of_texts(text_pair)
    if not texts:
        raise InputError("no texts: pass at least one")
    if pairs is not None and len(pairs) != len(texts):
        raise InputError(f"text has {len(texts)} texts, text_pair {len(pairs)}: pass the same number")

    end = [EOS] if options.add_special_tokens else []
    left = options.truncation_side == "left"
    rows, cut = [], []
    for i, one in enumerate(texts):
        parts = [to_ids(one), [] if pairs is None else to_ids(pairs[i])]
        kept = [len(part) for part in parts]
        if options.limit is not None:
            kept = list(longest_first(kept[0], kept[1], options.limit - len(end)))
        spans = [slice(len(part) - n, None) if left else slice(n) for part, n in zip(parts, kept, strict=True)]
        rows.append([*parts[0][spans[0]], *parts[1][spans[1]], *end])
        cut.append(sum(map(len, parts)) - sum(kept))

    length = options.padded_length([len(row) for row in rows])
    left = options.padding_side == "left"
    if left and any(len(row) < length for row in rows):
        warnings.warn(LEFT_PADDING, stacklevel=3)
    values: dict[str, Any] = {"input_ids": _pad(rows, length, PAD, left)}
    if options.return_attention_mask is not False:
        values["attention_mask"] = _pad([[1] * len(row) for row in rows], length, 0, left)
    if options.return_length:
        values["length"] = [max(len(row), length) for row in rows]
    if options.return_tensors is not None:
        values = {name: _to_tensor(value, options.return_tensors) for name, value in values.items()}
    elif isinstance(text, str):
        values = {name: value[0] if isinstance(value[0], list) else value for name, value in values.items()}
    return BatchEncoding(values, cut)


def list_of_texts(texts: str | Iterable[str]) -> list[str]:
    """Return one text or several as a list.

    Raises:
        InputTypeError: neither.
    """
    if isinstance(texts, str):
        return [texts]
    kind = type(texts).__name__
    if isinstance(texts, Mapping) or hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise InputTypeError(f"expected a text or several, got a {kind}: pass its texts, as in data['text']")
    if hasattr(texts, "is_meta"):  # a tensor of torch takes seconds to iterate
        raise InputTypeError(f"expected a text or several, got a {kind}")
    return as_list(texts, "expected a text or several")


def as_list(values: Any, expected: str) -> list[Any]:
    """Return the elements of any sequence of texts, tokens or ids.

    Raises:
        InputTypeError: it cannot be iterated, or is of bytes.
    """
    try:
        if isinstance(values, bytes | bytearray):
            raise TypeError
        return list(values)
    except Exception as error:  # also of the object's own code
        raise InputTypeError(f"{expected}, got {shown(values)}") from error


def integers(values: Any, expected: str) -> list[int]:
    """Convert one integer or several (of Python, NumPy or torch) to a list.

    Raises:
        InputTypeError: not integers.
    """
    try:
        if getattr(values, "ndim", 1) > 1:
            raise TypeError  # before a large array becomes lists
        values = values.tolist() if hasattr(values, "tolist") else values
        listed = isinstance(values, Iterable) and not isinstance(values, bytes | bytearray)
        return [index(value) for value in values] if listed else [index(values)]
    except Exception as error:  # also of the object's own code
        raise InputTypeError(f"{expected}, got {shown(values)}") from error


def _pad(rows: list[list[int]], length: int, value: int, left: bool) -> list[list[int]]:
    fills = [[value] * (length - len(row)) for row in rows]
    return [fill + row if left else row + fill for row, fill in zip(rows, fills, strict=True)]


def _to_tensor(rows: list[Any], kind: str) -> Any:
    if len({len(row) for row in rows if isinstance(row, list)}) > 1:
        raise InputError("texts of different lengths cannot form an array: pass padding=True")
    array = np.array(rows, dtype=np.int64)
    if kind == "np":
        return array
    try:
        import torch
    except ImportError:
        raise InputError("return_tensors='pt' needs torch: pip install 'pegasusx-ref[torch]', or pass 'np'") from None
    return torch.from_numpy(array)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Truncate a pair of texts to a total length: the longer one is cut until both are equally long.

    Args:
        first: tokens of the first text.
        second: tokens of the second text.
        room: total number of tokens.

    Returns:
        Tokens to keep of each.

    Source: HF tokenizers, truncation strategy "longest_first"; if the total is odd, the longer text gets the odd token.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)
