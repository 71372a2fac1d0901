"""Stable top-k over large vocabularies: `torch.topk` does not define which of several equal scores comes first."""

import torch
from torch import Tensor

CHUNK = 64  # columns: the fastest on a CPU among powers of 2


def stable_top_k(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Compute `golden.top_k.stable_top_k` by the same algorithm; shapes are fixed, so it never waits for the device.

    Args:
        scores: (B, n), without NaN.
        count: number of scores to return.
    """
    num_chunks = scores.shape[1] // CHUNK
    if num_chunks <= count:
        best, columns = scores.sort(dim=1, descending=True, stable=True)
        return best[:, :count], columns[:, :count]
    in_chunks = scores[:, : num_chunks * CHUNK].unflatten(1, (num_chunks, CHUNK))
    _, chunks = stable_top_k(in_chunks.amax(dim=2), count)
    chunks = chunks.sort(dim=1).values
    candidates = in_chunks.take_along_dim(chunks[:, :, None], 1).flatten(1)
    candidates = torch.cat([candidates, scores[:, num_chunks * CHUNK :]], dim=1)  # always with the remainder
    best, places = stable_top_k(candidates, count)
    chunks = torch.cat([chunks, torch.full_like(chunks[:, :1], num_chunks)], dim=1)
    return best, chunks.gather(1, places // CHUNK) * CHUNK + places % CHUNK
