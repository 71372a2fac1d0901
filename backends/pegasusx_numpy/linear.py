"""Matrix products with weights: each thread computes some of the output features, or of many rows."""

import numpy as np

from pegasusx_numpy.thread_pool import MIN_PARALLEL_MACS, balanced_chunks, parallel_for
from pegasusx_numpy.workspace import empty

FEW_ROWS = 32  # up to here reading the weights takes longer than multiplying with them
SMALL_GEMM_MACS = 2**19  # multiply-adds of a product that OpenBLAS computes without packing its operands
MIN_PARALLEL_WEIGHT_SIZE = 2**20  # numbers in a weight: with few rows, larger ones are read by several threads
MAX_BLAS_MACS = 2**23  # multiply-adds: larger products occur beside work of the pool, where BLAS's threads would spin
MANY_ROWS = 2  # for each output feature: from here on it is faster that all threads read all weights than all rows


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Compute `golden.feed_forward.linear` over the rows of the whole batch at once, so that weights are read once."""
    x_rows, num_out = x.reshape(-1, x.shape[-1]), weight.shape[0]
    num_rows = len(x_rows)
    y_rows = empty((num_rows, num_out), x.dtype)
    multiply = gemm_few_rows if 1 < num_rows <= FEW_ROWS else gemm

    def work(part: tuple[slice, slice]) -> None:
        rows, features = part
        multiply(x_rows[rows], weight[features], y_rows[part])
        if bias is not None:
            y_rows[part] += bias[features]

    macs = num_rows * weight.size
    if num_rows <= FEW_ROWS:  # with a single one, BLAS reads weights at the speed of the memory on its own threads
        is_parallel = num_rows > 1 and weight.size >= MIN_PARALLEL_WEIGHT_SIZE
    else:
        is_parallel = macs > MIN_PARALLEL_MACS
    every = slice(None)
    if not is_parallel:
        parts = [(every, every)]
    elif num_rows > MANY_ROWS * num_out:
        parts = [(rows, every) for rows in balanced_chunks(num_rows, num_rows)]
    else:
        parts = [(every, features) for features in balanced_chunks(num_out, num_out)]
    if is_parallel or (num_rows > FEW_ROWS and macs > MAX_BLAS_MACS):
        parallel_for(parts, work)
    else:
        work(*parts)
    return y_rows.reshape(*x.shape[:-1], num_out)


def gemm(x_rows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Multiply rows with weights.

    Args:
        x_rows: (rows, in features).
        weight: (out features, in features).
        out: the result (rows, out features), written in place.
    """
    np.matmul(x_rows, weight.T, out=out)


def gemm_few_rows(x_rows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Multiply a few rows with the weights in small matrices; arguments as for `gemm`.

    GEMM packs its operands first, so that it can read each number often and in order. With few rows packing takes
    longer than the product itself. OpenBLAS has kernels for small matrices, which read the operands as they are.
    """
    num_rows, num_in = x_rows.shape
    features_per_gemm = max(SMALL_GEMM_MACS // (num_rows * num_in), 1)
    whole = len(weight) // features_per_gemm * features_per_gemm
    small_weights = weight[:whole].reshape(-1, features_per_gemm, num_in)
    out[:, :whole] = (small_weights @ x_rows.T).reshape(whole, num_rows).T
    out[:, whole:] = x_rows @ weight[whole:].T
