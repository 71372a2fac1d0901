"""Stable top-k on every backend, against a stable sort of all scores."""

import numpy as np
import pytest
from agreement import check_top_k
from backend_parameters import IN_FLOAT64, backend_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

pytestmark = pytest.mark.slow


@st.composite
def score_tables(draw: st.DrawFn) -> np.ndarray:
    """Draw float32 scores with many ties, including those of excluded tokens and of beams that do not exist yet."""
    rng = np.random.default_rng(draw(seeds))
    values = np.append(rng.standard_normal(draw(st.sampled_from([0, 1, 2, 5, 500]))), [0, -1e9, -np.inf])
    weights = np.full(len(values), 1 / len(values))
    weights[-2:] += draw(st.sampled_from([(0, 0), (5, 0), (0, 5), (50, 50)]))
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 700))
    return rng.choice(values, shape, p=weights / weights.sum()).astype(np.float32)


@pytest.mark.parametrize("backend", IN_FLOAT64)
@settings(max_examples=100)
@given(score_tables(), st.integers(1, 20), st.sampled_from([2, 3, 8]))
def test_top_k_agrees_with_a_stable_sort(backend: str, scores: np.ndarray, count: int, chunk: int) -> None:
    """Chunks are small, so that few columns make chunks of chunks."""
    ops = backend_on_cpu(backend, "float64")
    with pytest.MonkeyPatch.context() as patch:
        if backend in ("torch", "cupy"):
            in_chunks = type(ops).stable_top_k.__globals__["stable_top_k"]
            patch.setitem(in_chunks.__globals__, "CHUNK", chunk)
        check_top_k(ops, scores, count)


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("beams", [1, 8])
@pytest.mark.parametrize("case", ["drawn", "first step", "forced end", "all ruled out", "rising", "falling"])
def test_top_k_of_a_vocabulary_of_published_size(backend: str, beams: int, case: str) -> None:
    """As many columns per beam as the published checkpoints have tokens."""
    scores = -np.random.default_rng(beams).gamma(2, 5, (2, beams, 96103)).astype(np.float32)
    match case:
        case "first step":
            scores[:, 1:] += np.float32(-1e9)
        case "forced end":
            scores[:] = -np.inf
            scores[:, :, 1] = np.arange(beams) // 2
        case "all ruled out":
            scores[:] = -np.inf
        case "rising":
            scores.sort(axis=2)
        case "falling":
            scores = -np.sort(-scores, axis=2)
    check_top_k(backend_on_cpu(backend, "float32"), scores.reshape(2, -1), 2 * beams)


@pytest.mark.parametrize("case", ["equal", "rising", "falling", "all ruled out but some"])
def test_only_few_scores_are_sorted(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Sorting is the slow part: its length must not depend on the scores, even if all are equal."""
    sorted_ = []
    lexsort = np.lexsort

    def record(keys: tuple[np.ndarray, ...]) -> np.ndarray:
        sorted_.append(len(keys[0]))
        return lexsort(keys)

    monkeypatch.setattr(np, "lexsort", record)
    scores = np.zeros((2, 8 * 96103), dtype=np.float32)
    match case:
        case "rising" | "falling":
            scores += np.arange(scores.shape[1], dtype=np.float32) * (1 if case == "rising" else -1)
        case "all ruled out but some":
            scores[:, 5:] = -np.inf
    check_top_k(backend_on_cpu("numpy", "float32"), scores, 16)
    assert 32 <= sum(sorted_) < 2 * 16 * 256
