"""Screening of many bugs of a position-wise operation: a few rows decide which of them are computed whole. [spec 16]"""

from collections.abc import Callable
from functools import partial

import numpy as np

from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants

Rows = Callable[[np.ndarray], np.ndarray]  # selects rows of any tensor with the operation's leading axes
RowVariant = Callable[[Rows], np.ndarray]  # computes those rows of the result
RowVariants = dict[str, RowVariant]  # by the bug in words

NUM_PROBES = 12
EXPLAINED = 0.5  # the largest share of a row's error that a bug may leave


def all_rows(tensor: np.ndarray) -> np.ndarray:
    """Select every row."""
    return tensor


def whole(variants: RowVariants) -> Variants:
    """Compute all rows with each bug."""
    return {bug: partial(variant, all_rows) for bug, variant in variants.items()}


def screened(op: FailedOperation, right: RowVariant, variants: RowVariants) -> Variants:
    """Keep the bugs that explain at least one of a few rows; none where the candidate does not show the result.

    A bug that explains the error leaves only rounding; any other leaves about as much as there was. One row is enough,
    because others may be padding, or right by chance.

    Args:
        op: the failed operation.
        right: computes the operation without a bug.
        variants: the bugs.
    """
    leading, candidate = op.inputs[0].shape[:-1], op.layer.tensors.get(op.name)
    if candidate is None or candidate.shape[:-1] != leading:
        return {}
    probes = probed_rows(op, leading)

    def rows(tensor: np.ndarray) -> np.ndarray:
        selected: np.ndarray = tensor[probes][None]
        return selected

    found = rows(candidate)
    if found.shape != (value := right(rows)).shape:
        return {}

    def error(wrong: np.ndarray) -> np.ndarray:
        size: np.ndarray = np.linalg.norm(found - wrong, axis=-1)
        return size

    with np.errstate(all="ignore"):
        allowed = EXPLAINED * error(value)
        return whole({bug: variant for bug, variant in variants.items() if (error(variant(rows)) < allowed).any()})


def probed_rows(op: FailedOperation, leading: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return the indices of a few rows: those of real tokens where the rows are the source's."""
    mask = op.layer.source_mask_BT
    places = np.argwhere(mask if mask.shape == leading else np.ones(leading, dtype=bool))
    chosen = np.unique(np.linspace(0, len(places) - 1, NUM_PROBES).astype(int)) if len(places) else np.array([], int)
    return tuple(places[chosen].T)
