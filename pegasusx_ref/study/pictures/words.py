"""Words out of the pieces that a tokenizer makes of them."""

from collections.abc import Sequence

import numpy as np

from pegasusx_ref.errors import InputError

SPACE = "▁"  # in front of a piece that begins a word


def by_word(probs: np.ndarray, tokens: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Average the rows of the tokens that make up a word; special tokens such as ``</s>`` stand for themselves.

    Args:
        probs: a row for each token (tokens, keys).
        tokens: their names, as `PegasusTokenizer.convert_ids_to_tokens` gives them.

    Returns:
        A row for each word (words, keys), and the words.

    Raises:
        InputError: another number of rows than tokens, or no token at all.
    """
    if not tokens or len(probs) != len(tokens):
        raise InputError(f"{len(probs)} rows for {len(tokens)} tokens: one for each is expected, and one at least")
    is_special = [token.startswith("<") and token.endswith(">") for token in tokens]
    first = [
        i for i, token in enumerate(tokens) if not i or token.startswith(SPACE) or is_special[i] or is_special[i - 1]
    ]
    words = ["".join(tokens[a:b]).replace(SPACE, " ").strip() for a, b in zip(first, [*first[1:], None], strict=True)]
    counts = np.diff([*first, len(tokens)])
    means: np.ndarray = np.add.reduceat(probs, first, axis=0) / counts[:, None]
    return means, words
