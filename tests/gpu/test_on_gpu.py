"""The backends on CUDA: the checks of tests/test_backends_agree.py, and inputs of full length."""

from typing import Any

import numpy as np
import ptx_instructions
import pytest
from agreement import check_logits_processors, check_model, check_operation, check_top_k
from backend_parameters import DTYPES, quantized_weights
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import Batch, Operation, batches, configs, operations, seeds
from tolerances import MODEL, OPERATIONS, assert_close

from pegasusx_ref import BackendError, PegasusXConfig, PegasusXForConditionalGeneration, available_backends, get_backend
from pegasusx_ref.golden.global_local import block_bounds, global_local_attention

some = settings(max_examples=15, phases=(Phase.explicit, Phase.generate))  # shrinking takes minutes of a rented device


def on_cuda(name: str, dtype: str) -> Any:
    """Return a test parameter, which is skipped with the reason if the backend has no CUDA device."""
    info = available_backends()[name]
    reason = info.problem or f"backend {name!r} has no CUDA device: available here: {', '.join(info.devices)}"
    missing = not any(device.startswith("cuda") for device in info.devices)
    return pytest.param(name, dtype, id=f"{name}-{dtype}", marks=pytest.mark.skipif(missing, reason=reason))


EVERYTHING = [on_cuda(name, dtype) for name in ("torch", "cupy") for dtype in DTYPES[name]]
IN_FLOAT64 = [on_cuda(name, "float64") for name in ("torch", "cupy")]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@some
@given(st.data())
def test_operations_agree(backend: str, dtype: str, name: str, data: st.DataObject) -> None:
    check_operation(get_backend(backend, "cuda:0", dtype), data.draw(operations(name)))


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@some
@given(st.data())
def test_models_agree(backend: str, dtype: str, data: st.DataObject) -> None:
    config = data.draw(configs(layer_norm_eps=1e-5, init_std=0.2))
    check_model(get_backend(backend, "cuda:0", dtype), config, data.draw(seeds), data.draw(batches(config)))


@pytest.mark.parametrize(("backend", "dtype"), IN_FLOAT64)
def test_searches_agree(backend: str, dtype: str) -> None:
    """Bit for bit: which of many equal scores comes first, and the results of logits processors."""
    ops = get_backend(backend, "cuda:0", dtype)
    rng = np.random.default_rng(0)
    for values in ([0.0], [-np.inf, -1e9, -2.0], rng.standard_normal(30), rng.standard_normal(10**6)):
        scores = rng.choice(values, (2, 8 * 96103)).astype(np.float32)
        check_top_k(ops, scores, 16)
        np.testing.assert_array_equal(ops.to_numpy(ops.to_float32(scores).argmax(-1)), scores.argmax(-1))
    for seed in range(100):
        check_logits_processors(ops, seed, 1 + seed % 9, 9)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("staggered", [False, True], ids=["even", "staggered"])
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_the_attention_core_agrees_at_16384_tokens(backend: str, dtype: str, staggered: bool, masked: bool) -> None:
    """Two heads of 64 features, with published sizes: blocks of 512 and 128 global tokens."""
    B, H, T, F, G = 1, 2, 16384, 64, 128
    rng = np.random.default_rng(0)
    arguments: dict[str, Any] = {
        name: rng.standard_normal((B, T, H, F)).swapaxes(1, 2) for name in ("q_BHTF", "k_BHTF", "v_BHTF")
    }
    arguments |= {f"global_{n}_BHGF": rng.standard_normal((B, G, H, F)).swapaxes(1, 2) for n in "qkv"}
    arguments["key_mask_BT"] = np.arange(T)[None] < T - 1000 if masked else None
    arguments["blocks"] = block_bounds(T, 512, staggered)
    check_operation(get_backend(backend, "cuda:0", dtype), Operation("global_local_attention", arguments))


@pytest.mark.parametrize("num_queries", [1, 8, 20, 100])
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_attention_to_16384_keys_agrees(backend: str, dtype: str, num_queries: int) -> None:
    """Two sources, of which one is padded; up to 64 queries have a kernel of their own on CuPy."""
    B, H, X, F = 2, 2, 16384, 64
    rng = np.random.default_rng(0)
    shapes = {"q_BHLF": num_queries, "k_BHXF": X, "v_BHXF": X}
    arguments: dict[str, Any] = {
        name: rng.standard_normal((B, length, H, F)).swapaxes(1, 2) for name, length in shapes.items()
    }
    arguments["visible"] = np.arange(X)[None, None] < np.array([[[X]], [[X - 1000]]])
    check_operation(get_backend(backend, "cuda:0", dtype), Operation("attention", arguments))


@pytest.mark.parametrize("num_rows", [1, 8, 20, 100])
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_linear_maps_to_a_vocabulary_agree(backend: str, dtype: str, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    arguments = {"x": rng.standard_normal((1, num_rows, 1024)), "weight": rng.standard_normal((20001, 1024))}
    for name in ("linear", "linear_full_precision"):
        check_operation(get_backend(backend, "cuda:0", dtype), Operation(name, arguments))


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_a_model_with_published_block_sizes_agrees(backend: str, dtype: str) -> None:
    config = PegasusXConfig.preset("base", encoder_layers=2, decoder_layers=2, vocab_size=1000)
    rng = np.random.default_rng(0)
    mask = np.arange(2100) < np.array([[2100], [1300]])
    batch = Batch(rng.integers(106, 1000, (2, 2100)), mask, rng.integers(106, 1000, (2, 9)))
    check_model(get_backend(backend, "cuda:0", dtype), config, 0, batch)


@pytest.mark.parametrize(("backend", "dtype"), IN_FLOAT64)
@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 4, "length_penalty": 0.8}], ids=str)
def test_tokens_agree(backend: str, dtype: str, how: dict[str, Any]) -> None:
    config = PegasusXConfig.preset("tiny", init_std=0.5)
    ids = np.random.default_rng(0).integers(106, 256, (2, 50))
    written = [
        PegasusXForConditionalGeneration.from_random(config, 0, backend=name, dtype=dtype).generate(
            ids, max_new_tokens=12, **how
        )
        for name in ("golden", backend)
    ]
    assert written[0].tolist() == written[1].tolist()


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 4}], ids=str)
def test_captured_steps_give_the_same_tokens(backend: str, dtype: str, how: dict[str, Any]) -> None:
    """More tokens than the first capacity of a static cache, which is the default on CUDA."""
    config = PegasusXConfig.preset("tiny", init_std=0.5)
    ids = np.random.default_rng(0).integers(106, 256, (2, 50))
    model = PegasusXForConditionalGeneration.from_random(config, 0, backend=backend, dtype=dtype)
    assert model.ops.compiles
    default, dynamic, static = (
        model.generate(ids, min_new_tokens=100, max_new_tokens=100, cache_implementation=cache, **how).tolist()
        for cache in (None, "dynamic", "static")
    )
    assert default == static
    # In half precision torch attends by another kernel where slots are masked.
    assert dynamic == static or (backend == "torch" and dtype in ("bfloat16", "float16"))


@pytest.mark.parametrize("kind", ["nf4-double", "fp4", "int8"])
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_quantized_models_agree_and_their_steps_can_be_captured(backend: str, dtype: str, kind: str) -> None:
    config = PegasusXConfig.preset("tiny", d_model=64, init_std=0.2)
    weights = quantized_weights(config, 0, kind)
    model = PegasusXForConditionalGeneration(config, weights, get_backend(backend, "cuda:0", dtype))
    golden = PegasusXForConditionalGeneration(config, model.state_dict(), get_backend("golden", dtype="float64"))
    ids = np.random.default_rng(0).integers(106, 256, (2, 50))
    found, expected = (each(ids, decoder_input_ids=ids[:, :7]).logits for each in (model, golden))
    assert_close(f"logits on {backend} {dtype}", found, expected, MODEL[dtype])
    dynamic, static = (
        model.generate(ids, min_new_tokens=70, max_new_tokens=70, cache_implementation=cache).tolist()
        for cache in ("dynamic", "static")
    )
    assert dynamic == static or (backend == "torch" and dtype in ("bfloat16", "float16"))


@pytest.mark.parametrize("arithmetic", ["bfloat16", "float16", "tf32"])
@pytest.mark.parametrize(("backend", "dtype"), [on_cuda("cupy", "float32")])
def test_instructions_compute_what_the_manual_says(backend: str, dtype: str, arithmetic: str) -> None:
    """The checks of the emulated instructions in tests/test_cupy.py."""
    import cupy

    assert get_backend(backend, "cuda:0", dtype).name == "cupy"
    options = ("--std=c++14", *ptx_instructions.options(arithmetic))
    module = cupy.RawModule(code=ptx_instructions.source(arithmetic), options=options)

    def launch(name: str, inputs: list[np.ndarray], *results: np.ndarray) -> list[np.ndarray]:
        """Launch one warp with arrays of bits, which every dtype has."""
        on_device = [cupy.asarray(x.view(f"u{x.itemsize}")) for x in (*inputs, *results)]
        module.get_function(name)((1,), (32,), tuple(on_device))
        return [cupy.asnumpy(y).view(x.dtype) for x, y in zip(results, on_device[len(inputs) :], strict=True)]

    ptx_instructions.check(arithmetic, launch)


@pytest.mark.parametrize(("backend", "dtype"), [on_cuda("cupy", "float32")])
def test_the_attention_core_agrees_in_tf32(backend: str, dtype: str) -> None:
    B, H, T, F, G = 1, 2, 3000, 64, 128
    rng = np.random.default_rng(0)
    arrays: list[Any] = [rng.standard_normal((B, length, H, F)).swapaxes(1, 2) for length in (T, T, T, G, G, G)]
    ops: Any = get_backend(backend, "cuda:0", dtype, tf32=True)
    blocks = block_bounds(T, 512, staggered=True)
    found = ops.global_local_attention(*[*map(ops.asarray, arrays), None, blocks])
    for x, y in zip(found, global_local_attention(*[*arrays, None, blocks]), strict=True):
        assert 1e-5 < np.abs(ops.to_numpy(x) - y).max() < 2e-3


@pytest.mark.parametrize(("backend", "dtype"), IN_FLOAT64)
def test_only_ids_are_copied_to_the_host(backend: str, dtype: str) -> None:
    """Only the chosen ids are copied to the host."""
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"), backend=backend, dtype=dtype)
    to_numpy = type(model.ops).to_numpy
    shapes: list[tuple[int, ...]] = []

    def record_shape(ops: Any, array: Any) -> np.ndarray:
        shapes.append(tuple(array.shape))
        return to_numpy(ops, array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.ops), "to_numpy", record_shape)
        model.generate(np.full((1, 30), 120), max_new_tokens=3)
    assert shapes == [(1,), ()] * 3  # the ids of each step, and whether its logits are finite


@pytest.mark.parametrize(("backend", "dtype"), IN_FLOAT64)
def test_an_unavailable_device_is_refused(backend: str, dtype: str) -> None:
    with pytest.raises(BackendError, match="has no device 'cuda:64'"):
        get_backend(backend, "cuda:64", dtype)


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("width", [4, 33, 768])
def test_a_layer_norm_whose_variance_overflows_is_nan(backend: str, dtype: str, width: int) -> None:
    if dtype == "float16":
        pytest.skip("float16 holds no number whose square overflows float32")
    ops: Any = get_backend(backend, "cuda:0", dtype)
    x = np.random.default_rng(0).standard_normal((1, 3, width))
    x[0, 1] *= 1e200 if dtype == "float64" else 1e30
    found = ops.to_numpy(ops.layer_norm(*map(ops.asarray, (x, np.ones(width), np.full(width, 0.5))), 1e-5))
    assert np.isnan(found[0, 1]).all()
    assert np.isfinite(found[0, [0, 2]]).all()
