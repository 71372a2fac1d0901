"""Odd texts to draw: all planes of Unicode, marks, zero-width and control characters, runs of whitespace, tokens."""

from collections.abc import Sequence
from random import Random

ZERO_WIDTH = "\u200b\u200c\u200d\ufeff\u2060\u00ad\u180e"
CONTROLS = [chr(i) for i in (*range(32), *range(127, 160), 0x2028, 0x2029)]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2003"]
EMOJI = ["😀", "👨‍👩‍👧", "🇩🇪", "✊🏽", "❤️"]


def odd_text(rng: Random, prose: str, tokens: Sequence[str]) -> str:
    """Draw a text of up to 40 parts, some of them pieces of prose and some of them tokens."""

    def words() -> str:
        start = rng.randrange(len(prose) - 30)
        return prose[start : start + rng.randint(1, 25)]

    def any_character() -> str:
        return chr(rng.choice([rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x10000), rng.randrange(0x110000)]))

    def marks() -> str:
        return rng.choice("aeioué가ﬁ①") + "".join(chr(rng.randrange(0x300, 0x370)) for _ in range(rng.randint(1, 4)))

    def spaces() -> str:
        return rng.choice(SPACES) * rng.randint(1, 3)

    lists = [ZERO_WIDTH, CONTROLS, EMOJI, tokens, tokens]
    kinds = [words, words, any_character, marks, spaces, spaces, *(lambda chosen=c: rng.choice(chosen) for c in lists)]
    text = "".join(rng.choice(kinds)() for _ in range(rng.choice([0, 1, 2, 5, 12, 12, 40])))
    return text.encode("utf-8", "replace").decode()  # no surrogates
