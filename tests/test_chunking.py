"""CPU backends compute in chunks: with small chunks, small tensors take the same paths and give the same results."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pegasusx_numpy.thread_pool
import pytest
from agreement import check_model, check_operation
from backend_parameters import EVERYTHING, backend_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from small_chunks import small_chunks
from strategies import batches, configs, operations, seeds

from pegasusx_ref import PegasusXConfig, PegasusXModel, listen, record
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.model.layers import feed_forward
from pegasusx_ref.model.weights import Weights, random_weights

pytestmark = pytest.mark.slow

IN_CHUNKS = [each for each in EVERYTHING if each.values[0] in ("numpy", "torch")]


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    with small_chunks():
        yield


@pytest.mark.parametrize("name", ["linear", "linear_full_precision", "layer_norm", "activation", "attention", "add"])
@pytest.mark.parametrize(("backend", "dtype"), IN_CHUNKS)
@settings(max_examples=30)
@given(st.data())
def test_operations_in_chunks_agree(backend: str, dtype: str, name: str, data: st.DataObject) -> None:
    check_operation(backend_on_cpu(backend, dtype), data.draw(operations(name)))


@pytest.mark.parametrize(("backend", "dtype"), IN_CHUNKS)
@settings(max_examples=30)
@given(st.data())
def test_the_attention_core_in_chunks_agrees(backend: str, dtype: str, data: st.DataObject) -> None:
    check_operation(backend_on_cpu(backend, dtype), data.draw(operations("global_local_attention")))


@pytest.mark.parametrize(("backend", "dtype"), IN_CHUNKS)
@settings(max_examples=20)
@given(st.data())
def test_models_in_chunks_agree(backend: str, dtype: str, data: st.DataObject) -> None:
    config = data.draw(configs(layer_norm_eps=1e-5, init_std=0.2))
    check_model(backend_on_cpu(backend, dtype), config, data.draw(seeds), data.draw(batches(config)))


@pytest.mark.parametrize("few_rows", [0, 8, 32])
@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@settings(max_examples=20)
@given(st.data())
def test_implementations_for_other_processors_agree(
    dtype: str, is_slow: bool, few_rows: int, data: st.DataObject
) -> None:
    """The torch backend chooses by the CPU's vendor and features: both choices are tested on every CPU."""
    torch: Any = pytest.importorskip("torch")
    import pegasusx_torch.attention as attention
    import pegasusx_torch.global_local as global_local
    import pegasusx_torch.linear as linear

    if is_slow and not linear.HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "IS_MKL_SLOW", is_slow)
        patch.setattr(global_local, "IS_MKL_SLOW", is_slow)
        patch.setattr(linear, "IS_BFLOAT16_EMULATED", few_rows < 32)
        patch.setitem(linear.FEW_ROWS, torch.bfloat16, range(1, few_rows + 1))
        patch.setattr(attention, "FEW_QUERIES", 1 if is_slow else 32)
        patch.setattr(attention, "HAS_BFLOAT16_WITHOUT_AMX", is_slow)
        ops = backend_on_cpu("torch", dtype)
        for name in ("linear", "linear_full_precision", "attention", "global_local_attention"):
            check_operation(ops, data.draw(operations(name)))


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("length", [1, 4, 23])
def test_apply_in_chunks_covers_every_token_once(backend: str, dtype: str, length: int) -> None:
    ops = backend_on_cpu(backend, dtype)
    x_BTD = ops.add_positions(ops.asarray(np.random.default_rng(length).standard_normal((2, length, 6))), 0)
    sizes: list[int] = []

    def square(x: Any) -> Any:
        sizes.append(x.shape[0] * x.shape[1])
        return x * x + x

    y_BTD = ops.to_numpy(ops.apply_in_chunks(square, x_BTD))
    np.testing.assert_array_equal(y_BTD, ops.to_numpy(x_BTD * x_BTD + x_BTD))
    assert sum(sizes) == 2 * length
    assert (len(sizes) > 1) == (backend in ("numpy", "torch") and 2 * length > 5)


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_lay_out_keeps_the_values(backend: str, dtype: str) -> None:
    ops = backend_on_cpu(backend, dtype)
    k_BHTF, v_BHTF = (ops.asarray(x).swapaxes(1, 2) for x in np.random.default_rng(0).standard_normal((2, 2, 5, 3, 4)))
    keys, values = ops.lay_out(k_BHTF, v_BHTF)
    for copy, original in ((keys, k_BHTF), (values, v_BHTF)):
        assert copy.shape == original.shape
        np.testing.assert_array_equal(ops.to_numpy(copy), ops.to_numpy(original))
    if backend == "numpy":
        assert keys.swapaxes(2, 3).flags.c_contiguous
        assert values.flags.c_contiguous
    if backend == "torch":
        from pegasusx_torch.attention import reads_keys_by_feature

        assert (keys.mT if reads_keys_by_feature(keys) else keys).is_contiguous()
        assert values.is_contiguous()
        assert ops.lay_out(keys, values)[1] is values


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("queries", [1, 3, 40])
def test_attention_takes_the_layout(backend: str, dtype: str, queries: int) -> None:
    ops = backend_on_cpu(backend, dtype)
    q_BHLF, k_BHXF, v_BHXF = (
        ops.asarray(np.random.default_rng(0).standard_normal((2, length, 3, 4))).swapaxes(1, 2)
        for length in (queries, 9, 9)
    )
    visible = ops.asarray(np.random.default_rng(1).random((2, queries, 9)) < 0.7)
    for mask in (None, visible):
        laid_out = ops.to_numpy(ops.attention(q_BHLF, *ops.lay_out(k_BHXF, v_BHXF), mask))
        plain = ops.to_numpy(ops.attention(q_BHLF, k_BHXF, v_BHXF, mask))
        np.testing.assert_allclose(laid_out, plain, rtol=0, atol=1e-2 if dtype.endswith("16") else 1e-5)


@pytest.mark.parametrize("point", ["final_layer_norm", "fc1", "activation", "fc2", "output"])
def test_listeners_get_whole_tensors(point: str) -> None:
    """The feed-forward sublayer is not chunked where a listener records its inside; its output is always whole."""
    config = PegasusXConfig.preset("tiny", activation_function="gelu")
    model = PegasusXModel.from_random(config, backend="numpy", dtype="float64")
    golden = PegasusXModel.from_random(config, backend="golden", dtype="float64")
    ids, traces = np.random.default_rng(0).integers(0, 256, (2, 30)), []
    for each in (model, golden):
        with record(f"encoder.layers.1.tokens.{point}") as trace:
            each.encode(ids)
        traces.append(next(iter(trace.values())))
    assert traces[0].shape[:2] == (2, 30)
    np.testing.assert_allclose(traces[0], traces[1], rtol=1e-12, atol=1e-13)


def test_a_listener_to_the_output_alone_keeps_the_chunks() -> None:
    """Progress bars listen to the output, and must not cost memory."""
    config = PegasusXConfig.preset("tiny")
    weights = Weights(random_weights(config)).at("encoder.layers.0")
    lengths: list[int] = []

    class Counting(pegasusx_numpy.NumpyBackend):
        def activation(self, x: np.ndarray, name: str) -> np.ndarray:
            lengths.append(x.shape[1])
            return super().activation(x, name)

    x_BTD = np.random.default_rng(0).standard_normal((1, 30, config.d_model), dtype=np.float32)
    with listen(lambda *_: None, "output"):
        feed_forward(Counting(None, "float32"), weights, config, x_BTD)
    assert len(lengths) > 1
    lengths.clear()
    with listen(lambda *_: None, "fc1"):
        feed_forward(Counting(None, "float32"), weights, config, x_BTD)
    assert lengths == [30]


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("max_size", [1, 4, 1000])
def test_balanced_chunks_cover_a_length(length: int, max_size: int) -> None:
    chunks = pegasusx_numpy.thread_pool.balanced_chunks(length, max_size)
    assert [i for chunk in chunks for i in range(length)[chunk]] == list(range(length))
    assert all(chunk.stop - chunk.start <= max_size for chunk in chunks)


def test_the_golden_backend_computes_whole_tensors() -> None:
    ops = GoldenBackend("cpu", "float64")
    x_BTD = np.random.default_rng(0).standard_normal((1, 5000, 4))
    assert ops.apply_in_chunks(lambda x: x, x_BTD) is x_BTD
    k_BHXF = x_BTD[None]
    assert all(copy is k_BHXF for copy in ops.lay_out(k_BHXF, k_BHXF))
