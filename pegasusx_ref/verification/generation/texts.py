"""The texts of a candidate: its generated ids, with or without the start token, padded in any way. [spec 16]"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.checkpoint.settings import is_integer
from pegasusx_ref.errors import InputError, reason, shown
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.generation.config import MAX_LENGTH

Text = tuple[int, ...]  # without the start token, to the end token where there is one
MAX_TEXTS = 2**12


def rows_of(tokens: Any, num_texts: int, vocab_size: int) -> list[list[int]]:
    """Check a candidate's ids and list them, one text a row.

    Args:
        tokens: ids (B, n), (B R, n) or (B, R, n), an array or lists, whose rows may differ in length. Numbers below 0
            are padding.
        num_texts: B R.
        vocab_size: V.

    Raises:
        InputError: another number of texts, or something else than token ids.
    """
    if not isinstance(tokens, list | tuple):
        try:
            array = to_numpy(tokens)
        except Exception as error:  # of any library
            raise InputError(f"candidate_tokens are not an array: {reason(error)}") from None
        if array.ndim not in (2, 3) or array.dtype.kind not in "iu" or array.size > MAX_TEXTS * MAX_LENGTH:
            raise InputError(
                f"candidate_tokens have shape {array.shape} and dtype {array.dtype}: pass integers (texts, tokens) or "
                "(sources, num_return_sequences, tokens)"
            )
        tokens = array.reshape(-1, array.shape[-1]).tolist()
    rows = list(tokens)
    if rows and all(isinstance(row, list | tuple) and row and isinstance(row[0], list | tuple) for row in rows):
        rows = [text for texts in rows for text in texts[: MAX_TEXTS + 1]]
    if len(rows) != num_texts:
        raise InputError(
            f"candidate_tokens are {len(rows)} texts, but the settings ask for {num_texts}: pass num_return_sequences "
            "texts for each source"
        )
    for number, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) > MAX_LENGTH:
            raise InputError(f"candidate_tokens: text {number} is {shown(row)}: pass at most {MAX_LENGTH:,} token ids")
        if wrong := [entry for entry in row if not is_integer(entry) or entry >= vocab_size]:
            raise InputError(
                f"candidate_tokens: text {number} has {shown(wrong[0])}: token ids of this model lie in "
                f"[0, {vocab_size}), padding may be below 0"
            )
    return [[int(token) for token in row] for row in rows]


class Texts:
    """Texts that can be compared, however they were padded.

    Args:
        rows: ids, one text a row.
        config: the settings, for the ids of end and padding.
        start: a start token that each row begins with, or None.

    Attributes:
        texts: the tokens before the end token; where other tokens than padding follow that, all tokens.
        ends: the end token of each text, or None.
        after_end: for each text whose end token is followed by other tokens than padding: the step of the end token.
        has_ends: whether any text has an end token.
        targets: the texts with their end tokens, which a search must choose; with any, where there are none.
    """

    def __init__(self, rows: Sequence[Sequence[int]], config: GenerationConfig, start: int | None) -> None:
        self.texts: list[Text] = []
        self.ends: list[int | None] = []
        self.after_end: dict[int, int] = {}
        ends, padding = config.eos_token_ids, {config.padding_token_id, config.fill_token_id}
        self.has_ends = any(token in ends for row in rows for token in row[start is not None :])
        for number, row in enumerate(rows):
            text = tuple(row if start is None else row[1:])
            end = next((i for i, token in enumerate(text) if token in ends), None)
            while text and (text[-1] < 0 or (text[-1] in padding and not self.has_ends)):
                text = text[:-1]
            tail = (
                [] if end is None else [token for token in text[end:] if token >= 0 and token not in {*ends, *padding}]
            )
            if tail and end is not None:
                self.after_end[number] = end
            self.ends.append(None if tail or end is None else text[end])
            self.texts.append(text if tail else text[:end])
        assumed = ends[:1] if not self.has_ends else []
        self.targets = [
            (*text, *(assumed if end is None else [end])) for text, end in zip(self.texts, self.ends, strict=True)
        ]

    def same(self, candidate: "Texts") -> list[bool]:
        """Return which texts are the same; a candidate that has no end token at all may leave them out."""
        pairs = zip(self.texts, candidate.texts, self.ends, candidate.ends, strict=True)
        return [one == two and (end == other or not candidate.has_ends) for one, two, end, other in pairs]

    def agreements(self, other: "Texts") -> list[int]:
        """Count the tokens that each text has in common with the other one, from the first one."""
        return [agreement(*pair) for pair in zip(self.texts, other.texts, strict=True)]

    def token(self, number: int, step: int) -> int | None:
        """Return the token of a text at a step, its end token included; None after its end."""
        text, end = self.texts[number], self.ends[number]
        return text[step] if step < len(text) else end if step == len(text) else None


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens that two texts have in common, from the first one."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def start_of(rows: Sequence[Sequence[int]], ours: np.ndarray, config: GenerationConfig) -> int | None:
    """Return the start token that a candidate's rows begin with, or None where they have none.

    Args:
        rows: the candidate's ids.
        ours: the reference's (B R, L), the start token first.
        config: the settings.
    """
    first = {row[0] if row else -1 for row in rows}
    if len(first) > 1:
        return None
    (token,), texts = first, ours[:, 1:].tolist()
    with_start = sum(agreement(row[1:], text) for row, text in zip(rows, texts, strict=True))
    alone = sum(agreement(row, text) for row, text in zip(rows, texts, strict=True))
    starts = (config.start_token_id, config.bos_token_id, config.pad_token_id, *config.eos_token_ids)
    return token if with_start > alone or (with_start == alone and token in starts) else None
