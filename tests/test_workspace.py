"""Memory that is used again: never while something refers to it, and only inside a workspace."""

from itertools import pairwise
from threading import Thread
from typing import Any

import numpy as np
import pegasusx_numpy.workspace as workspaces
import pytest
from backend_parameters import EVERYTHING, backend_on_cpu
from hypothesis import given
from hypothesis import strategies as st
from pegasusx_numpy.workspace import empty, workspace

from pegasusx_ref import PegasusXConfig, PegasusXModel

WITH_WORKSPACE = [each for each in EVERYTHING if each.values[0] in ("numpy", "torch")]
SIZES = (2**20, 2**20 + 64, 2**21)  # bytes


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


@given(st.lists(st.one_of(st.sampled_from(SIZES), st.integers(0, 5)), min_size=1, max_size=20))
def test_arrays_in_use_do_not_overlap(actions: list[int]) -> None:
    """A small number drops one of the arrays, a large one allocates."""
    live: list[np.ndarray] = []
    with workspace():
        for action in actions:
            if action < SIZES[0]:
                if live:
                    live.pop(action % len(live))
                continue
            array = empty((action // 4,), np.float32)
            live.append(array[1:] if len(live) % 2 else array)  # a view keeps the memory as well
        ranges = sorted((address(array), address(array) + array.nbytes) for array in live)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges))


@given(st.lists(st.one_of(st.sampled_from(SIZES), st.integers(0, 5)), min_size=1, max_size=30))
def test_hardly_more_is_kept_than_was_in_use_at_once(actions: list[int]) -> None:
    live: list[np.ndarray] = []
    buffers, most = workspaces.Buffers(), 0
    for action in actions:
        if action >= SIZES[0]:
            live.append(buffers.take(action))
            most = max(most, sum(len(memory) + workspaces.ALIGNMENT for memory in live))
        elif live:
            live.pop(action % len(live))
        assert sum(map(len, buffers._buffers)) <= most * workspaces.MAX_HELD


def test_memory_is_used_again_inside_the_block_only() -> None:
    shape, dtype = (3, 2**18), np.float32
    with workspace():
        array = empty(shape, dtype)
        first = address(array)
        assert first % workspaces.ALIGNMENT == 0
        assert array.shape == shape
        assert array.dtype == dtype
        assert address(empty(shape, dtype)) != first
        rows = array[1:]
        del array
        assert address(empty(shape, dtype)) != first  # rows refer to it
        del rows
        with workspace():
            assert address(empty(shape, dtype)) == first
        assert empty((2,), dtype).base is None
        kept = empty(shape, dtype)
        assert address(kept) == first
    kept[:] = 1
    assert empty(shape, dtype).base is None
    np.testing.assert_array_equal(kept, 1)


def test_threads_do_not_share_a_workspace() -> None:
    found: list[Any] = []
    with workspace():
        thread = Thread(target=lambda: found.append(empty(SIZES[:1], np.uint8).base))
        thread.start()
        thread.join()
    assert found == [None]


@pytest.fixture
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocate arrays of every size in the workspace, and fill them with NaN."""
    take = workspaces.Buffers.take

    def poisoned(self: workspaces.Buffers, size: int) -> np.ndarray:
        memory = take(self, size)
        memory.fill(0xFF)
        return memory

    monkeypatch.setattr(workspaces.Buffers, "take", poisoned)
    monkeypatch.setattr(workspaces, "MIN_BYTES", 0)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize(("backend", "dtype"), WITH_WORKSPACE)
def test_models_write_all_memory_that_they_read(backend: str, dtype: str) -> None:
    backend_on_cpu(backend, dtype)
    config = PegasusXConfig.preset("tiny", activation_function="relu")
    ids, mask = np.random.default_rng(0).integers(106, 256, (2, 90)), np.ones((2, 90), int)
    mask[1, 70:] = 0
    model = PegasusXModel.from_random(config, backend=backend, dtype=dtype)
    golden = PegasusXModel.from_random(config, backend="golden", dtype="float64")
    for key_mask in (None, mask):
        written = model.encode(ids, key_mask).last_hidden_state
        expected = golden.encode(ids, key_mask).last_hidden_state
        tolerance = {"float64": 1e-10, "float32": 1e-4}.get(dtype, 0.1)
        np.testing.assert_allclose(written, expected, rtol=0, atol=tolerance)
