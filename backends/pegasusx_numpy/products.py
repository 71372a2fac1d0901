"""The product with a weight matrix, for many rows and for few."""

import numpy as np

from pegasusx_numpy.threads import PIECES_A_THREAD, for_each, split

ROWS = 1024  # of a piece at the most: so many that the weights, which each piece reads again, cost little
FEW = 32  # rows: from here on a product is limited by its arithmetic, and no longer by reading the weights
SMALL = 2**19  # multiplications in a product that OpenBLAS does without laying its matrices out anew first


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Compute `pegasusx_ref.feed_forward.linear`: the rows of all texts at once, so that weights are read once."""
    x_rows, num_out = x.reshape(-1, x.shape[-1]), weight.shape[0]
    y_rows = np.empty((len(x_rows), num_out), dtype=x.dtype)

    def some_rows(rows: slice) -> None:
        np.matmul(x_rows[rows], weight.T, out=y_rows[rows])
        if bias is not None:
            y_rows[rows] += bias

    def some_features(features: slice) -> None:
        y_rows[:, features] = few_rows_times(x_rows, weight[features])
        if bias is not None:
            y_rows[:, features] += bias[features]

    if len(x_rows) == 1:  # on the threads of BLAS, which reads as fast as memory lets it
        some_rows(slice(None))
    elif len(x_rows) <= FEW:
        for_each(split(num_out, num_out, PIECES_A_THREAD), some_features)
    else:
        for_each(split(len(x_rows), ROWS), some_rows)
    return y_rows.reshape(*x.shape[:-1], num_out)


def few_rows_times(x_rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Multiply a few rows with the weights in small matrices.

    A product lays both of its matrices out anew, so that it can read each number often and in order. With few rows that
    takes longer than all the rest. OpenBLAS has another way for small matrices, which takes them as they are.

    Args:
        x_rows: (rows, in features).
        weight: (out features, in features).

    Returns:
        (rows, out features).
    """
    num_rows, num_in = x_rows.shape
    at_a_time = max(SMALL // (num_rows * num_in), 1)
    whole = len(weight) // at_a_time * at_a_time
    y_rows = np.empty((num_rows, len(weight)), dtype=x_rows.dtype)
    small = weight[:whole].reshape(-1, at_a_time, num_in)
    y_rows[:, :whole] = (small @ x_rows.T).reshape(whole, num_rows).T
    y_rows[:, whole:] = x_rows @ weight[whole:].T
    return y_rows
