"""What ends a text besides end tokens and the maximum length. [spec 12]"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pegasusx_ref.backend import Backend
from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError, shown

Criterion = Callable[[np.ndarray], np.ndarray]  # ids so far (N, n) in, True for texts that end (N,) out


def stop_strings(strings: Sequence[str], tokenizer: Any) -> Criterion:
    """Return a criterion that ends a text with the token that completes one of some strings. [spec 12.23]

    Args:
        strings: not empty.
        tokenizer: converts the ids, with `encode` and `decode`.

    Source: HF `StopStringCriteria`.
    """
    longest = max(map(len, strings))  # tokens, each at least one character
    base = list(tokenizer.encode("a")[:1])  # in front of a token, because a text loses its leading space
    offset, texts = len(tokenizer.decode(base)), {}

    def text_of(token_id: int) -> str:
        if token_id not in texts:
            texts[token_id] = tokenizer.decode([*base, token_id])[offset:]
        return texts[token_id]

    def ends(row: list[int]) -> bool:
        before, newest = "".join(map(text_of, row[:-1])), text_of(row[-1])
        return any(string in (before + newest)[max(len(before) - len(string) + 1, 0) :] for string in strings)

    return lambda ids: np.array([ends(row) for row in ids[:, -longest:].tolist()])


def time_limit(seconds: float) -> Criterion:
    """Return a criterion that ends all texts a number of seconds after now.

    Source: HF `MaxTimeCriteria`.
    """
    start = time.monotonic()
    return lambda ids: np.full(len(ids), time.monotonic() - start > seconds)


def criterion_of_caller(function: Callable[..., Any], ops: Backend) -> Criterion:
    """Call a function (input_ids, None) -> booleans of the caller with the backend's arrays.

    Args:
        function: returns True for texts that end (N,), or one value for all; a `StoppingCriteria` of transformers, for
            example. The scores that it would get are None.
        ops: the model's backend.
    """

    def criterion(ids: np.ndarray) -> np.ndarray:
        returned = function(ops.asarray(ids), None)
        try:
            ended = np.broadcast_to(to_numpy(returned), (len(ids),))
        except Exception:  # of any library
            ended = np.array(None)
        if ended.dtype != bool:
            raise InputError(
                f"stopping_criteria: {shown(function)} returned {shown(returned)}: return a boolean for each of the "
                f"{len(ids)} texts"
            )
        return ended

    return criterion
