"""The attention core alone: the blocks of one staggered layer, and the global tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.benchmarking.cases import Case
from pegasusx_ref.benchmarking.timing import timed, waiter
from pegasusx_ref.golden.global_local import block_bounds


def core_task(case: Case, implementation: str, device: str) -> Callable[[int], float]:
    """Make a backend's attention core ready; see `task_of`."""
    ops: Any = get_backend(implementation, device, case.dtype)
    wait = waiter(implementation, device)
    streams: dict[int, list[Any]] = {}

    def seconds(tokens: int) -> float:
        if tokens not in streams:
            streams[tokens] = [ops.asarray(x).swapaxes(1, 2) for x in random_streams(case, tokens)]
        blocks = block_bounds(tokens, case.config.block_size, staggered=True)
        return timed(lambda: ops.global_local_attention(*streams[tokens], None, blocks), wait)

    return seconds


def random_streams(case: Case, tokens: int) -> list[np.ndarray]:
    """Draw queries, keys and values, of the tokens (1, T, H, F) and then of the global tokens (1, G, H, F)."""
    config, rng = case.config, np.random.default_rng(0)
    H = config.encoder_attention_heads
    lengths = [tokens] * 3 + [config.num_global_tokens] * 3
    return [rng.standard_normal((1, n, H, config.d_model // H), dtype=np.float32) for n in lengths]
