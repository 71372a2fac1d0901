"""Products of few rows on a CPU: weights in another order, the same numbers."""

import gc
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model

from pegasusx_ref import PegasusXConfig

torch = pytest.importorskip("torch", reason="torch is not installed")
products: Any = pytest.importorskip("pegasusx_torch.products")
needs_onednn = pytest.mark.skipif(not products.HAS_ONEDNN, reason="this torch has no oneDNN")


def randn(seed: int, *shape: int, dtype: Any) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


@needs_onednn
@pytest.mark.parametrize("is_slow", [False, True], ids=["Intel", "others"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 16, 32, 33])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_packed_products_agree(
    rows: int, has_bias: bool, dtype: Any, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "IS_MKL_SLOW", is_slow)
    weight, bias = randn(1, 300, 400, dtype=dtype), randn(2, 300, dtype=dtype) if has_bias else None
    packed = products.Products()
    for call in range(products.PATIENCE + 3):
        x = randn(call, rows, 2, 400, dtype=dtype)[:, 1:]  # with gaps between its rows
        expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        found = packed.linear(x, weight, bias)
        assert found.dtype == dtype
        assert found.shape == (rows, 1, 300)
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < {torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    assert len(packed._packed) == (rows in products.FEW[dtype])


@pytest.mark.parametrize("shape", [(7,), (1, 7), (1, 1, 7)], ids=str)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 300])
def test_a_row_meets_every_row_of_the_weight(rows: int, shape: tuple[int, ...]) -> None:
    x, bias = randn(0, *shape, dtype=torch.float64), randn(2, rows, dtype=torch.float64)
    for weight in (randn(1, rows, 7, dtype=torch.float64), randn(1, 7, rows, dtype=torch.float64).T):
        for b in (bias, None):
            expected = torch.nn.functional.linear(x, weight, b)
            found = products.row_times(x, weight, b)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() < 1e-14
    assert (bias == randn(2, rows, dtype=torch.float64)).all()


@needs_onednn
def test_only_what_is_met_again_and_again_is_packed() -> None:
    packed, weight = products.Products(), randn(0, 300, 400, dtype=torch.float32)
    for _ in range(products.PATIENCE):
        packed.linear(randn(1, 8, 400, dtype=torch.float32), weight, None)
    assert len(packed._packed) == 0
    packed.linear(randn(1, 8, 400, dtype=torch.float32), weight, None)
    assert len(packed._packed) == 1
    for other in (randn(0, 30, 400, dtype=torch.float32), randn(0, 300, 400, dtype=torch.float64)):
        for _ in range(products.PATIENCE + 2):
            packed.linear(randn(1, 8, 400, dtype=other.dtype), other, None)
    assert len(packed._packed) == 1  # small, or in a dtype that it does not serve


@needs_onednn
@pytest.mark.parametrize("inference", [False, True])
def test_weights_that_are_written_into_are_packed_again(inference: bool) -> None:
    with torch.inference_mode(inference):
        packed, weight = products.Products(), randn(0, 300, 400, dtype=torch.float32)
        x = randn(1, 8, 400, dtype=torch.float32)
        for _ in range(products.PATIENCE + 1):
            packed.linear(x, weight, None)
        assert len(packed._packed) == 1
        if not inference:  # torch counts nothing there
            weight.mul_(2)
        assert torch.allclose(packed.linear(x, weight, None), x @ weight.T, rtol=1e-5, atol=1e-4)


@needs_onednn
def test_packed_weights_go_with_the_weights() -> None:
    packed, weight = products.Products(), randn(0, 300, 400, dtype=torch.float32)
    for _ in range(products.PATIENCE + 1):
        packed.linear(randn(1, 8, 400, dtype=torch.float32), weight, None)
    del weight
    gc.collect()
    assert len(packed._packed) == 0


@needs_onednn
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beams_are_the_same_with_packed_weights(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PegasusXConfig.preset("tiny", init_std=0.5)
    monkeypatch.setattr(products, "LARGE", 0)
    ids, written = np.random.default_rng(0).integers(106, 256, (1, 30)), []
    for patience in (10**6, 0):
        monkeypatch.setattr(products, "PATIENCE", patience)
        model = random_model(config, 3, "torch", dtype)
        written.append(model.generate(ids, num_beams=4, min_new_tokens=12, max_new_tokens=12).tolist())
        assert bool(len(model.ops._products._packed)) == (patience == 0)  # type: ignore[attr-defined]
    assert written[0] == written[1]
