"""The cells of a heatmap: many rows in one, each with the colour of the worst."""

import numpy as np

from pegasusx_ref.verification.checking import FAIL, WARN, Rows

LEVELS = (0.3, 1.0, WARN, FAIL, 30.0, 1e3, 1e6)  # rho up to which a cell has its colour; above the last one more
FIRST_FAILING = LEVELS.index(FAIL) + 1


def power_of_two(least: float) -> int:
    """Round up to a power of two, so that bins do not straddle the edges of blocks."""
    return 1 << max(0, int(np.ceil(np.log2(least))))


def binned(values: np.ndarray, width: int, rest: float) -> np.ndarray:
    """Take the largest of every `width` values along the last axis, whatever is NaN apart."""
    missing = -values.shape[-1] % width
    padded = np.pad(values, ((0, 0), (0, missing)), constant_values=rest)
    largest: np.ndarray = np.fmax.reduce(padded.reshape(len(values), -1, width), axis=2)
    return largest


def levels(rows: Rows, bin_width: int) -> np.ndarray:
    """Give the level of every cell; -1 where no row counts."""
    rho, is_wrong = binned(rows.rho, bin_width, np.nan), binned(rows.is_wrong, bin_width, False)
    found = np.searchsorted(LEVELS, rho, side="left")
    # A row may be wrong in one element and right as a whole.
    found = np.where(is_wrong, np.maximum(found, FIRST_FAILING), found)
    return np.where(np.isnan(rho), -1, found)


def path(is_set: np.ndarray) -> str:
    """Outline cells: one rectangle for those that lie side by side."""
    steps = np.diff(np.pad(is_set.astype(int), ((0, 0), (1, 1))), axis=1)
    starts, stops = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return "".join(f"M{x} {y}h{stop - x}v1h{x - stop}z" for (y, x), (_, stop) in zip(starts, stops, strict=True))
