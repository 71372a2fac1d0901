"""What a decode step may see instead of the keys and values of its cache. [spec 16]"""

from collections.abc import Callable
from functools import partial

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]  # keys or values (B, H, n, F) -> those that a step sees
MAX_COUNTS = 64


def pick(*rows: int) -> Change:
    """Choose rows."""
    return lambda x: x[:, :, list(rows)]


def zero(row: int, change: Change) -> Change:
    """Set a row to 0 after another change."""
    return lambda x: change(x) * (np.arange(x.shape[2]) != row)[:, None]


def batch_row(order: int) -> Change:
    """Take the rows of another member of the batch."""
    return lambda x: np.roll(x, order, axis=0)


def cache_changes(num_tokens: int, batch: int) -> dict[str, Change]:
    """List what a step may see instead of the keys or values of all tokens so far.

    Args:
        num_tokens: so far, the newest included.
        batch: B.
    """

    def old_of(order: int) -> Change:
        return lambda x: np.concatenate([np.roll(x, order, axis=0)[:, :, :-1], x[:, :, -1:]], axis=2)

    *old, last = range(num_tokens)
    changes = {
        "the cache is stale: the newest row is missing": pick(*old),
        "the cache is stale: the row before the newest is repeated": pick(*old, *old[-1:]),
        "the cache is stale: the newest row is 0": zero(last, pick(*old, last)),
        "the cache is shifted: rows are one token late, the first is 0": zero(0, pick(last, *old)),
        "the cache is shifted: rows are one token late": pick(last, *old),
        "the cache is shifted: rows are one token early": pick(*old[1:], last, 0),
        "the cache keeps the first row and the newest": pick(0, last),
    }
    for count in range(num_tokens - 1, 0, -1):
        changes[f"the cache is truncated: only the last {count} rows are kept"] = pick(*range(num_tokens)[-count:])
    for words, order in (("previous", 1), ("next", -1)) if batch > 1 else ():
        changes[f"the cache is not reordered: its rows are those of the {words} batch row"] = old_of(order)
        changes[f"the cache is that of the {words} batch row"] = batch_row(order)
    return changes


def source_changes(num_tokens: int, batch: int) -> dict[str, Change]:
    """List what a step may see instead of the keys or values of the source.

    Args:
        num_tokens: T.
        batch: B.
    """
    *old, last = rows = range(num_tokens)
    changes: dict[str, Change] = {
        "the cache of the source is stale: its rows are 0": np.zeros_like,
        "the cache of the source is shifted: rows are one token late, the first is 0": zero(0, pick(last, *old)),
        "the cache of the source is shifted: rows are one token late": pick(last, *old),
        "the cache of the source is shifted: rows are one token early, the last is 0": zero(last, pick(*rows[1:], 0)),
        "the cache of the source is shifted: rows are one token early": pick(*rows[1:], 0),
    }
    for words, order in (("previous", 1), ("next", -1)) if batch > 1 else ():
        changes[f"the cache of the source is that of the {words} batch row"] = batch_row(order)
    powers = [2**n for n in range(20, -1, -1)]
    for count in dict.fromkeys([*range(num_tokens - 1, 0, -1)[:MAX_COUNTS], *powers]):
        if count < num_tokens:
            for words, kept in (("first", rows[:count]), ("last", rows[-count:])):
                changes[f"the cache of the source is truncated: only the {words} {count} rows are kept"] = pick(*kept)
    return changes


def unfilled_slots(count: int) -> dict[str, Change]:
    """List what a step sees of a static cache whose slots for later tokens are not masked."""

    def with_zeros(number: int, x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros_like(x[:, :, :1]).repeat(number, axis=2)], axis=2)

    return {f"{number} unfilled slots are not masked": partial(with_zeros, number) for number in range(1, count + 1)}
