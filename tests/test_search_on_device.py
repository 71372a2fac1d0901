"""Searches on every backend: scores of all tokens stay on the device, and are the search's own."""

from typing import Any

import numpy as np
import pytest
from agreement import check_processors
from backend_parameters import EVERYTHING, IN_FLOAT64, backend_on_cpu, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from pegasusx_ref import PegasusXConfig, record

CONFIG = PegasusXConfig.preset("tiny", init_std=0.5)
IDS = np.random.default_rng(0).integers(106, 256, (2, 21))
PROCESSORS: dict[str, Any] = {
    "max_new_tokens": 8,
    "min_new_tokens": 8,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 2,
}


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_only_ids_and_candidates_come_back(
    monkeypatch: pytest.MonkeyPatch, backend: str, cache: str, num_beams: int
) -> None:
    model = random_model(CONFIG, 0, backend)
    sizes = watched_sizes(monkeypatch, model.ops)
    text = model.generate(IDS, num_beams=num_beams, cache_implementation=cache, **PROCESSORS)
    assert text.shape == (2, 9)
    assert len(sizes) >= 8
    assert max(sizes) <= 2 * 2 * num_beams  # two sources


@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_for_sampling_logits_come_back_once_a_step(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    model = random_model(CONFIG, 0, backend)
    sizes = watched_sizes(monkeypatch, model.ops)
    model.generate(IDS, do_sample=True, seed=0, **PROCESSORS)
    assert sizes == [2 * 256] * 8


def watched_sizes(monkeypatch: pytest.MonkeyPatch, ops: Any) -> list[int]:
    """Note how many numbers come back at a time; CuPy's arrays allow no other way, here torch's do not either."""
    sizes, to_numpy = [], ops.to_numpy

    def noted(array: Any) -> np.ndarray:
        found: np.ndarray = to_numpy(array)
        sizes.append(found.size)
        return found

    def refused(*_: Any) -> Any:
        raise TypeError("a tensor came back unasked")

    monkeypatch.setattr(ops, "to_numpy", noted)
    if ops.name == "torch":
        import torch

        for name in ("__array__", "tolist", "item", "__iter__"):
            monkeypatch.setattr(torch.Tensor, name, refused)
    return sizes


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 3}, {"do_sample": True, "seed": 0}], ids=str)
def test_what_listeners_recorded_stays_as_it_was(backend: str, how: dict[str, Any]) -> None:
    model = random_model(CONFIG, 0, backend, "float32")
    with record("lm_head") as trace:
        model.generate(IDS, **PROCESSORS, **how)
    (logits_BLV,) = trace.values()
    assert np.isfinite(np.asarray(model.ops.to_numpy(logits_BLV))).all()


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_float32_stays_float32(backend: str, dtype: str) -> None:
    """Running scores of the host, which `asarray` would round to the compute dtype."""
    ops = backend_on_cpu(backend, dtype)
    scores = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    there = ops.to_float32(scores)
    for copy in (there, ops.to_float32(there), ops.log_softmax(there)):
        copy += ops.to_float32(np.ones(1))
    back = ops.to_numpy(there)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, scores + np.float32(1))
    assert np.asarray(ops.to_numpy(ops.log_softmax(there))).dtype == np.float32


@pytest.mark.parametrize("backend", IN_FLOAT64)
@settings(max_examples=50)
@given(seeds, st.integers(1, 9), st.integers(5, 12))
def test_processors_write_the_same_scores(backend: str, seed: int, length: int, vocab: int) -> None:
    check_processors(backend_on_cpu(backend, "float64"), seed, length, vocab)
