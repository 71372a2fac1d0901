"""The best few of very many scores. [spec 12]"""

import numpy as np

RUN = 256  # columns: shorter runs are more to compare with each other, longer ones leave more to sort


def stable_top_k(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the best scores of each row, best first, the lower column first among equals. [spec 12.16]

    Sorting everything would do. But the best scores stand in the best runs of columns, if runs are compared as scores
    are: by their largest score, and the lower run first among equals. So only these runs are sorted.

    Args:
        scores: (B, n), no NaN among them.
        count: how many; all n where there are no more.

    Returns:
        The scores (B, count) and their columns (B, count).
    """
    num_runs = scores.shape[1] // RUN
    if num_runs <= count:
        columns = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, columns, axis=1), columns
    in_runs = scores[:, : num_runs * RUN].reshape(-1, num_runs, RUN)
    _, runs = stable_top_k(in_runs.max(axis=2), count)
    runs = np.sort(runs, axis=1)  # among equals the order of columns is still to decide
    candidates = np.take_along_axis(in_runs, runs[:, :, None], axis=1).reshape(-1, count * RUN)
    candidates = np.concatenate([candidates, scores[:, num_runs * RUN :]], axis=1)  # the rest is always one
    best, places = stable_top_k(candidates, count)
    runs = np.concatenate([runs, np.full_like(runs[:, :1], num_runs)], axis=1)
    return best, np.take_along_axis(runs, places // RUN, axis=1) * RUN + places % RUN
