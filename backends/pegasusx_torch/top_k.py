"""The best few of very many scores, the lower column first among equals, which `torch.topk` leaves open."""

import torch
from torch import Tensor

RUN = 64  # columns: the fastest on a CPU among powers of 2


def stable_top_k(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute `golden.top_k.stable_top_k` by the same algorithm: shapes are fixed, so nothing waits for the device.

    Args:
        scores: (B, n), no NaN among them.
        count: how many.
    """
    num_runs = scores.shape[1] // RUN
    if num_runs <= count:
        best, columns = scores.sort(dim=1, descending=True, stable=True)
        return best[:, :count], columns[:, :count]
    in_runs = scores[:, : num_runs * RUN].unflatten(1, (num_runs, RUN))
    _, runs = stable_top_k(in_runs.amax(dim=2), count)
    runs = runs.sort(dim=1).values
    candidates = torch.cat([in_runs.take_along_dim(runs[:, :, None], 1).flatten(1), scores[:, num_runs * RUN :]], dim=1)
    best, places = stable_top_k(candidates, count)
    runs = torch.cat([runs, torch.full_like(runs[:, :1], num_runs)], dim=1)
    return best, runs.gather(1, places // RUN) * RUN + places % RUN
