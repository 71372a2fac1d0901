"""Thresholds of the CPU backends that make them compute small tensors in chunks and on several threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

import pegasusx_numpy.thread_pool
import pytest

THRESHOLDS = {
    "pegasusx_numpy.attention": {
        "MAX_QUERIES": 3,
        "MAX_GROUPED_SCORES": 200,
        "MIN_PARALLEL_KEYS": 0,
        "KEYS_PER_GEMM": 4,
    },
    "pegasusx_numpy.workspace": {"MIN_BYTES": 0},
    "pegasusx_numpy.backend": {
        "MAX_CHUNK_TOKENS": 5,
        "MIN_OPTIMIZED_MACS": 0,
        "MIN_PARALLEL_MACS": 0,
        "MIN_CHUNKED_ACTIVATIONS": 7,
        "MAX_CACHED_NUMBERS": 7,
    },
    "pegasusx_numpy.linear": {
        "MAX_BLAS_MACS": 0,
        "MIN_PARALLEL_MACS": 0,
        "MIN_PARALLEL_WEIGHT_SIZE": 0,
        "SMALL_GEMM_MACS": 60,
    },
    "pegasusx_numpy.quantized": {
        "CHUNK": 100,
        "MIN_PARALLEL_NUMBERS": 0,
        "MIN_PARALLEL_MACS": 0,
        "MIN_PARALLEL_BYTES": 0,
    },
    "pegasusx_torch.attention": {"MAX_CACHED_NUMBERS": 50, "MIN_SCORES_PER_GEMM": 60},
    "pegasusx_torch.backend": {"MAX_CHUNK_TOKENS": 5},
    "pegasusx_torch.global_local": {"MAX_BATCHED_BLOCKS": 2},
    "pegasusx_torch.linear": {"MIN_ONEDNN_WEIGHT_SIZE": 0, "CALLS_BEFORE_PACKING": 1},
    "pegasusx_torch.quantized": {"CHUNK": 100},
}


@contextmanager
def small_chunks() -> Iterator[pytest.MonkeyPatch]:
    """Compute in chunks of a few numbers, on three threads."""
    with pytest.MonkeyPatch.context() as patch:
        for module, thresholds in THRESHOLDS.items():
            if module.startswith("pegasusx_torch") and find_spec("torch") is None:
                continue
            for name, value in thresholds.items():
                patch.setattr(import_module(module), name, value)
        patch.setattr(pegasusx_numpy.thread_pool, "num_threads", lambda: 3)
        yield patch
