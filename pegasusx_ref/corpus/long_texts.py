"""Texts that are longer than the model: divided at ends of sentences."""

import re
from collections.abc import Callable

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
SPACE = re.compile(r"\s+")
MARGIN = 0.97  # of the tokens that a part may have: tokens are not spread evenly over a text


def divide(text: str, num_tokens: Callable[[str], int], limit: int) -> list[str]:
    """Divide a text into parts of at most `limit` tokens, each as long as the ends of sentences allow.

    A sentence that is too long is divided between words, and a word that is too long anywhere.

    Args:
        text: the text.
        num_tokens: counts the tokens of a text.
        limit: of a part, at least 2.

    Returns:
        Parts that contain the whole text, except white space between them.
    """
    parts = []
    while (found := num_tokens(text)) > limit and len(text) > 1:
        length = max(int(len(text) * limit / found * MARGIN), 1)
        while num_tokens(text[: (end := last_end(text, length))]) > limit and end > 1:
            length = max(int(end * 0.9), 1)
        parts.append(text[:end].strip())
        text = text[end:].lstrip()
    return [part for part in (*parts, text.strip()) if part]


def last_end(text: str, length: int) -> int:
    """Return the last end of a sentence within a length, or of a word; neither in the second half of it: the length."""
    for pattern in (SENTENCE_END, SPACE):
        ends = [match.end() for match in pattern.finditer(text, length // 2, length)]
        if ends:
            return ends[-1]
    return length
