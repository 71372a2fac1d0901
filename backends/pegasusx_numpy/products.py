"""The product with a weight matrix: every thread computes some of the output features."""

import numpy as np

from pegasusx_numpy.threads import WORTH_SHARING, for_each, split

FEW = 32  # rows: up to here reading the weights takes longer than multiplying with them
SMALL = 2**19  # multiplications of a product that OpenBLAS does without laying its matrices out anew first
LARGE = 2**20  # numbers in a matrix that is worth being read by several threads


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Compute `golden.feed_forward.linear` over the rows of all texts at once, so that weights are read once."""
    x_rows, num_out = x.reshape(-1, x.shape[-1]), weight.shape[0]
    num_rows = len(x_rows)
    y_rows = np.empty((num_rows, num_out), dtype=x.dtype)
    multiply = few_rows_times if 1 < num_rows <= FEW else rows_times

    def work(features: slice) -> None:
        multiply(x_rows, weight[features], y_rows[:, features])
        if bias is not None:
            y_rows[:, features] += bias[features]

    if num_rows == 1:  # BLAS on its own threads: it reads as fast as memory lets it
        is_shared = False
    elif num_rows <= FEW:
        is_shared = weight.size >= LARGE
    else:
        is_shared = num_rows * weight.size > WORTH_SHARING
    for_each(split(num_out, num_out) if is_shared else [slice(None)], work)
    return y_rows.reshape(*x.shape[:-1], num_out)


def rows_times(x_rows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Multiply rows with weights.

    Args:
        x_rows: (rows, in features).
        weight: (out features, in features).
        out: the result (rows, out features), written into.
    """
    np.matmul(x_rows, weight.T, out=out)


def few_rows_times(x_rows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Multiply a few rows with the weights in small matrices; see `rows_times`.

    A product lays both of its matrices out anew, so that it can read each number often and in order. With few rows that
    takes longer than all the rest. OpenBLAS has another way for small matrices, which takes them as they are.
    """
    num_rows, num_in = x_rows.shape
    at_a_time = max(SMALL // (num_rows * num_in), 1)
    whole = len(weight) // at_a_time * at_a_time
    small = weight[:whole].reshape(-1, at_a_time, num_in)
    out[:, :whole] = (small @ x_rows.T).reshape(whole, num_rows).T
    out[:, whole:] = x_rows @ weight[whole:].T
