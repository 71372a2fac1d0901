"""Searches on every backend: the scores of all tokens stay on the device, in memory that only the search writes to."""

from typing import Any

import numpy as np
import pytest
from agreement import check_logits_processors
from backend_parameters import EVERYTHING, IN_FLOAT64, backend_on_cpu, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from pegasusx_ref import PegasusXConfig, record

pytestmark = pytest.mark.slow

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
def test_only_ids_and_candidates_are_copied_to_the_host(
    monkeypatch: pytest.MonkeyPatch, backend: str, cache: str, num_beams: int
) -> None:
    model = random_model(CONFIG, 0, backend)
    sizes = watched_sizes(monkeypatch, model.ops)
    text = model.generate(IDS, num_beams=num_beams, cache_implementation=cache, **PROCESSORS)
    assert text.shape == (2, 9)
    assert len(sizes) >= 8
    assert max(sizes) <= 2 * 2 * num_beams  # two sources


@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_sampling_copies_logits_to_the_host_once_per_step(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    model = random_model(CONFIG, 0, backend)
    sizes = watched_sizes(monkeypatch, model.ops)
    model.generate(IDS, do_sample=True, seed=0, **PROCESSORS)
    assert sizes == [2 * 256] * 8


def watched_sizes(monkeypatch: pytest.MonkeyPatch, ops: Any) -> list[int]:
    """Record the size of each copy to the host; other conversions of torch tensors raise, as those of CuPy do."""
    sizes, to_numpy = [], ops.to_numpy

    def record_size(array: Any) -> np.ndarray:
        on_host: np.ndarray = to_numpy(array)
        sizes.append(on_host.size)
        return on_host

    def refuse(*_: Any) -> Any:
        raise TypeError("implicit conversion of a tensor")

    monkeypatch.setattr(ops, "to_numpy", record_size)
    if ops.name == "torch":
        import torch

        for name in ("__array__", "tolist", "item", "__iter__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)
    return sizes


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 3}, {"do_sample": True, "seed": 0}], ids=str)
def test_searches_do_not_write_into_recorded_tensors(backend: str, how: dict[str, Any]) -> None:
    model = random_model(CONFIG, 0, backend, "float32")
    with record("lm_head") as trace:
        model.generate(IDS, **PROCESSORS, **how)
    (logits_BLV,) = trace.values()
    assert np.isfinite(np.asarray(model.ops.to_numpy(logits_BLV))).all()


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_to_float32_and_log_softmax_return_new_float32_arrays(backend: str, dtype: str) -> None:
    """Running scores on the host are not rounded to the compute dtype, as `asarray` does."""
    ops = backend_on_cpu(backend, dtype)
    scores = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    on_device = ops.to_float32(scores)
    for copy in (on_device, ops.to_float32(on_device), ops.log_softmax(on_device)):
        copy += ops.to_float32(np.ones(1))
    on_host = ops.to_numpy(on_device)
    assert on_host.dtype == np.float32
    np.testing.assert_array_equal(on_host, scores + np.float32(1))
    assert np.asarray(ops.to_numpy(ops.log_softmax(on_device))).dtype == np.float32


@pytest.mark.parametrize("backend", IN_FLOAT64)
@settings(max_examples=50)
@given(seeds, st.integers(1, 9), st.integers(5, 12))
def test_logits_processors_agree_bit_for_bit(backend: str, seed: int, length: int, vocab: int) -> None:
    check_logits_processors(backend_on_cpu(backend, "float64"), seed, length, vocab)
