"""Mistakes whose numbers are not known: taken from the candidate, they must explain every row. [spec 16]"""

from typing import Any

import numpy as np

from pegasusx_ref.golden.feed_forward import linear

BEYOND = 8  # rows that have to be explained, beyond those that the numbers are taken from


def of_linear(name: str, x: np.ndarray, settings: dict[str, Any], found: np.ndarray) -> dict[str, np.ndarray]:
    """A bias that should not be there, or another matrix.

    Args:
        name: of the result.
        x: rows that go in (n, D).
        settings: weight (E, D), and bias (E,) or None.
        found: the candidate's rows (n, E).

    Returns:
        A mistake in words, and the rows with it.
    """
    weight, bias = settings["weight"], settings["bias"]
    n, D = len(np.unique(x, axis=0)), x.shape[1]
    mistakes = {}
    if n > BEYOND or (bias is None and n > 1):
        right = linear(x, weight, bias)
        what = "a bias is added" if bias is None else "the bias is another one"
        mistakes[what] = right + (found - right).mean(axis=0)
    if n >= D + BEYOND:
        known = x if bias is None else np.c_[x, np.ones(len(x))]
        fitted, *_ = np.linalg.lstsq(known, found)
        fitted += np.linalg.lstsq(known, found - known @ fitted)[0]  # what the first solution has lost in rounding
        whose = "the head's are its own, not tied to the embeddings" if name == "lm_head" else "another matrix"
        mistakes[f"the weights are others: {whose}"] = known @ fitted
    return mistakes
