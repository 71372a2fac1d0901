"""From the ids of single texts to model inputs: truncation, end tokens, padding, masks. [spec 2]"""

from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any, Self

import numpy as np

from pegasusx_ref.checkpoint.settings import as_integer
from pegasusx_ref.errors import InputError, shown

PAD, EOS = 0, 1
NO_LIMIT = 10**30  # what transformers writes for "no maximum length"
MAX_PADDED = 2**24  # tokens
TRUNCATION = (None, True, False, "longest_first", "do_not_truncate")


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
    text_pair: str | Sequence[str] | None,
    max_length: int | None,
    truncation: bool | str | None,
    padding: bool | str | None,
    return_tensors: str | None,
) -> BatchEncoding:
    """Convert texts, or pairs of texts, to model inputs. [spec 2.2]

    Args:
        to_ids: converts one text to ids, without an end token.
        text: a text or several.
        text_pair: the same number of texts to append to them, or None.
        max_length: maximum number of ids, or None.
        truncation: False keeps long texts whole.
        padding: see `PegasusTokenizer.__call__`.
        return_tensors: "np", "pt" or None.

    Raises:
        InputError: not texts, no texts, or inconsistent arguments.
    """
    texts, pairs = list_of_texts(text), None if text_pair is None else list_of_texts(text_pair)
    if not texts:
        raise InputError("no texts: pass at least one")
    if pairs is not None and len(pairs) != len(texts):
        raise InputError(f"text has {len(texts)} texts, text_pair {len(pairs)}: pass the same number")
    if max_length is not None:
        given, max_length = max_length, as_integer(max_length)
        if max_length is None:
            raise InputError(f"max_length={shown(given)} must be an integer")
        if max_length < 1:
            raise InputError(f"max_length={shown(max_length)} leaves no room for </s>: it must be at least 1")
    if not isinstance(truncation, bool | str | None) or truncation not in TRUNCATION:
        raise InputError(f"truncation={shown(truncation)} is unknown: choose one of {', '.join(map(repr, TRUNCATION))}")

    rows, cut = [], []
    for i, one in enumerate(texts):
        first, second = to_ids(one), [] if pairs is None else to_ids(pairs[i])
        kept = (len(first), len(second))
        if max_length is not None and truncation not in (False, "do_not_truncate"):
            kept = longest_first(*kept, room=max_length - 1)
        rows.append([*first[: kept[0]], *second[: kept[1]], EOS])
        cut.append(len(first) + len(second) - sum(kept))

    length = _padded_length(rows, max_length, padding, return_tensors)
    masks = [[1] * len(row) for row in rows]
    values: dict[str, Any] = {"input_ids": _pad(rows, length, PAD), "attention_mask": _pad(masks, length, 0)}
    if return_tensors is not None:
        values = {name: _to_tensor(value, return_tensors) for name, value in values.items()}
    elif isinstance(text, str):
        values = {name: value[0] for name, value in values.items()}
    return BatchEncoding(values, cut)


def list_of_texts(texts: str | Iterable[str]) -> list[str]:
    """Return one text or several as a list.

    Raises:
        InputError: neither.
    """
    if isinstance(texts, str):
        return [texts]
    if hasattr(texts, "is_meta"):  # a tensor of torch takes seconds to iterate
        raise InputError(f"expected a text or several, got a {type(texts).__name__}")
    return as_list(texts, "expected a text or several")


def as_list(values: Any, expected: str) -> list[Any]:
    """Return the elements of any sequence of texts, tokens or ids.

    Raises:
        InputError: it cannot be iterated, or is of bytes.
    """
    try:
        if isinstance(values, bytes | bytearray):
            raise TypeError
        return list(values)
    except Exception as error:  # also of the object's own code
        raise InputError(f"{expected}, got {shown(values)}") from error


def integers(values: Any, expected: str) -> list[int]:
    """Convert one integer or several (of Python, NumPy or torch) to a list.

    Raises:
        InputError: not integers.
    """
    try:
        if getattr(values, "ndim", 1) > 1:
            raise TypeError  # before a large array becomes lists
        values = values.tolist() if hasattr(values, "tolist") else values
        listed = isinstance(values, Iterable) and not isinstance(values, bytes | bytearray)
        return [index(value) for value in values] if listed else [index(values)]
    except Exception as error:  # also of the object's own code
        raise InputError(f"{expected}, got {shown(values)}") from error


def _padded_length(
    rows: list[list[int]], max_length: int | None, padding: bool | str | None, return_tensors: str | None
) -> int:
    """Return the length to pad rows to; 0 for no padding."""
    if padding is None:
        padding = return_tensors is not None
    if not isinstance(padding, bool | int | str):
        padding = shown(padding)
    if padding == "max_length" and max_length is not None and max_length <= MAX_PADDED:
        return max_length
    if padding in (True, "longest"):
        return max(len(row) for row in rows)
    if padding in (False, "do_not_pad"):
        return 0
    choices = f"True, False, or 'max_length' together with max_length, at most {MAX_PADDED:,}"
    raise InputError(f"padding={shown(padding)}: choose {choices}")


def _pad(rows: list[list[int]], length: int, value: int) -> list[list[int]]:
    return [row + [value] * (length - len(row)) for row in rows]


def _to_tensor(rows: list[list[int]], kind: str) -> Any:
    if not isinstance(kind, str) or kind not in ("np", "pt"):
        raise InputError(f"return_tensors={shown(kind)} is unknown: choose 'np', or 'pt' where torch is installed")
    if len({len(row) for row in rows}) > 1:
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
