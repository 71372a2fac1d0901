"""Settings as JSON has them, whatever library their numbers come from."""

from math import prod
from typing import Any

PLAIN = (bool, int, float, str, type(None))
MAX_DEPTH = 2  # bad_words_ids is a list of lists
MAX_SIZE = 2**20  # numbers of an array: a broadcast one may stand for any number


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Convert scalars and arrays of NumPy or torch, and tuples, to numbers and lists.

    Args:
        value: a setting; what cannot be converted is returned as it is.
        depth: of the lists that are converted.
    """
    if type(value) in PLAIN:
        return value
    if not isinstance(value, list | tuple):
        try:
            return value.tolist() if prod(value.shape) <= MAX_SIZE else value
        except Exception:  # of the object's own conversion, too
            return value
    return [plain(entry, depth - 1) for entry in value] if depth else value


def is_same(value: Any, other: Any) -> bool:
    """Compare two settings; objects and arrays of other libraries may compare in any way, and never count as equal."""
    return isinstance(value, (*PLAIN, list, dict)) and bool(value == other)
