"""Matrix products with weights of the torch backend on a CPU: packed weights, single rows."""

import copy
import gc
import pickle
from threading import Thread
from time import sleep
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model

from pegasusx_ref import PegasusXConfig

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch", reason="torch is not installed")
linear: Any = pytest.importorskip("pegasusx_torch.linear")
needs_onednn = pytest.mark.skipif(not linear.HAS_ONEDNN, reason="this torch has no oneDNN")


def randn(seed: int, *shape: int, dtype: Any) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def multiply(packed_weights: Any, weight: Any, times: int) -> None:
    """Multiply eight rows, which are few, several times."""
    for _ in range(times):
        linear.linear(randn(1, 8, 400, dtype=weight.dtype), weight, None, packed_weights)


@needs_onednn
@pytest.mark.parametrize("is_slow", [False, True], ids=["Intel", "others"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 16, 32, 33])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_products_agree_before_and_after_packing(
    rows: int, has_bias: bool, dtype: Any, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "IS_MKL_SLOW", is_slow)
    weight, bias = randn(1, 300, 400, dtype=dtype), randn(2, 300, dtype=dtype) if has_bias else None
    packed_weights = linear.PackedWeights()
    for call in range(linear.CALLS_BEFORE_PACKING + 3):
        x = randn(call, rows, 2, 400, dtype=dtype)[:, 1:]  # with gaps between its rows
        expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        y = linear.linear(x, weight, bias, packed_weights)
        assert y.dtype == dtype
        assert y.shape == (rows, 1, 300)
        error = (y.double() - expected).abs().max() / expected.abs().max()
        assert error < {torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    assert len(packed_weights._packed) == (rows in linear.FEW_ROWS[dtype])


@needs_onednn
@pytest.mark.parametrize("is_slow", [False, True], ids=["Intel", "others"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 8, 31, 33])
@pytest.mark.parametrize("shape", [(300, 400), (257, 513)], ids=str)
def test_every_call_gives_the_same_bits(
    rows: int, shape: tuple[int, int], dtype: Any, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a call gives does not depend on how often the weight was used, and on whether it is packed."""
    monkeypatch.setattr(linear, "IS_MKL_SLOW", is_slow)
    weight, bias, packed_weights = (
        randn(1, *shape, dtype=dtype),
        randn(2, shape[0], dtype=dtype),
        linear.PackedWeights(),
    )
    for b in (bias, None):
        for x in (randn(0, rows, shape[1], dtype=dtype), randn(0, rows, 2, shape[1], dtype=dtype)[:, 1:]):
            ys = [linear.linear(x, weight, b, packed_weights) for _ in range(10)]
            assert all(torch.equal(y, ys[0]) for y in ys)


@needs_onednn
def test_one_thread_packs_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    reorder, packed = torch.ops.mkldnn._reorder_linear_weight, []

    def slowly(weight: Any, num_rows: int) -> Any:
        packed.append(num_rows)
        sleep(0.01)
        return reorder(weight, num_rows)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", slowly)
    packed_weights, weight = linear.PackedWeights(), randn(0, 300, 400, dtype=torch.float32)
    threads = [Thread(target=multiply, args=(packed_weights, weight, 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert packed == [8]


@needs_onednn
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_model_with_packed_weights_can_be_copied(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MIN_ONEDNN_WEIGHT_SIZE", 0)
    monkeypatch.setattr(linear, "CALLS_BEFORE_PACKING", 0)
    model = random_model(PegasusXConfig.preset("tiny"), 3, "torch", "float32")
    logits = model([[7, 8]], decoder_input_ids=[[0, 7]]).logits
    assert len(model.ops._packed_weights._packed)  # type: ignore[attr-defined]
    assert (copied(model)([[7, 8]], decoder_input_ids=[[0, 7]]).logits == logits).all()


@pytest.mark.parametrize("shape", [(7,), (1, 7), (1, 1, 7)], ids=str)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 300])
def test_gemv_uses_every_row_of_the_weight(rows: int, shape: tuple[int, ...]) -> None:
    x, bias = randn(0, *shape, dtype=torch.float64), randn(2, rows, dtype=torch.float64)
    for weight in (randn(1, rows, 7, dtype=torch.float64), randn(1, 7, rows, dtype=torch.float64).T):
        for b in (bias, None):
            expected = torch.nn.functional.linear(x, weight, b)
            y = linear.gemv(x, weight, b)
            assert y.shape == expected.shape
            assert (y - expected).abs().max() < 1e-14
    assert (bias == randn(2, rows, dtype=torch.float64)).all()


@needs_onednn
def test_only_large_weights_that_are_used_often_are_packed() -> None:
    packed_weights, weight = linear.PackedWeights(), randn(0, 300, 400, dtype=torch.float32)
    multiply(packed_weights, weight, linear.CALLS_BEFORE_PACKING)
    assert len(packed_weights._packed) == 0
    multiply(packed_weights, weight, 1)
    assert len(packed_weights._packed) == 1
    small, float64 = randn(0, 30, 400, dtype=torch.float32), randn(0, 300, 400, dtype=torch.float64)
    for other in (small, float64):
        multiply(packed_weights, other, linear.CALLS_BEFORE_PACKING + 2)
    assert len(packed_weights._packed) == 1


@needs_onednn
@pytest.mark.parametrize("inference", [False, True])
def test_a_weight_that_is_written_to_is_packed_again(inference: bool) -> None:
    with torch.inference_mode(inference):
        packed_weights, weight = linear.PackedWeights(), randn(0, 300, 400, dtype=torch.float32)
        multiply(packed_weights, weight, linear.CALLS_BEFORE_PACKING + 1)
        assert len(packed_weights._packed) == 1
        if not inference:  # inference tensors have no version counter
            weight.mul_(2)
        x = randn(1, 8, 400, dtype=torch.float32)
        assert torch.allclose(linear.linear(x, weight, None, packed_weights), x @ weight.T, rtol=1e-5, atol=1e-4)


@needs_onednn
def test_packed_copies_are_freed_with_their_weights() -> None:
    packed_weights, weight = linear.PackedWeights(), randn(0, 300, 400, dtype=torch.float32)
    multiply(packed_weights, weight, linear.CALLS_BEFORE_PACKING + 1)
    assert len(packed_weights._packed) == 1
    del weight
    gc.collect()
    assert len(packed_weights._packed) == 0


@needs_onednn
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beam_search_gives_the_same_tokens_with_packed_weights(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PegasusXConfig.preset("tiny", init_std=0.5)
    monkeypatch.setattr(linear, "MIN_ONEDNN_WEIGHT_SIZE", 0)
    ids, written = np.random.default_rng(0).integers(106, 256, (1, 30)), []
    for calls in (10**6, 0):
        monkeypatch.setattr(linear, "CALLS_BEFORE_PACKING", calls)
        model = random_model(config, 3, "torch", dtype)
        written.append(model.generate(ids, num_beams=4, min_new_tokens=12, max_new_tokens=12).tolist())
        assert bool(len(model.ops._packed_weights._packed)) == (calls == 0)  # type: ignore[attr-defined]
    assert written[0] == written[1]
