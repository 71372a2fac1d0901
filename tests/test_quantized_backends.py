"""Quantized matrices on every backend: products, tables and models, with compiled loops and without."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pegasusx_numpy.quantized
import pytest
from backend_parameters import EVERYTHING, IN_FLOAT64, backend_on_cpu, quantized_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from small_chunks import small_chunks
from strategies import batches, configs, seeds
from tolerances import MODEL, OPERATIONS, assert_close

from pegasusx_ref import DEMO_CHECKPOINT, PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.quantized import KINDS
from pegasusx_ref.model.loading import load_weights

HAS_KERNELS = pegasusx_numpy.quantized.kernels() is not None
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="numba is not installed, or lacks AVX2 here")
LOOPS = [pytest.param(True, id="compiled", marks=needs_kernels), pytest.param(False, id="NumPy")]


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """Compile the loops before `np.empty` is another function, which numba does not know."""
    with small_chunks():
        for kind in ("nf4", "int8"):
            for ops in (backend_on_cpu("numpy", "float32"), backend_on_cpu("numpy", "float64")):
                ops.linear(ops.asarray(np.ones((1, 64))), matrix_of(0, (6, 64), kind))
            pegasusx_numpy.quantized.linear(np.ones((1, 64), np.float32), matrix_of(0, (6, 64), kind))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pegasusx_numpy.quantized, "MIN_PARALLEL_BYTES", 2**30)  # on one thread
            for kind in ("nf4", "int8"):
                pegasusx_numpy.quantized.linear(np.ones((1, 64), np.float32), matrix_of(0, (6, 64), kind))


@pytest.fixture(autouse=True)
def _poison(_compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill uninitialized memory with NaN, so that rows that are not written are detected."""
    empty = np.empty

    def with_nan(*args: Any, **kwargs: Any) -> np.ndarray:
        array = empty(*args, **kwargs)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", with_nan)


@pytest.fixture
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the compiled loops or without them."""
    if not request.param:
        monkeypatch.setattr(pegasusx_numpy.quantized, "kernels", lambda: None)


def matrix_of(seed: int, shape: tuple[int, int], kind: str, block_size: int = 64) -> QuantizedMatrix:
    rng = np.random.default_rng(seed)
    return QuantizedMatrix.quantize(rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 1), kind, block_size)


# The loops take rows and blocks of whole pieces of 32 numbers. Of the others rows may begin inside of blocks or bytes.
SHAPES = [(1, 32), (3, 64), (7, 96), (5, 128), (40, 320), (3, 5), (6, 33), (5, 72), (2, 130)]


@pytest.mark.parametrize("loops", LOOPS, indirect=True)
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("kind", KINDS)
def test_products_agree(kind: str, backend: str, dtype: str, loops: None) -> None:
    """Each product is that with the dequantized matrix: float32 numbers, rounded to the dtype of a backend."""
    ops = backend_on_cpu(backend, dtype)
    with small_chunks():
        for seed, (shape, block_size) in enumerate((s, b) for s in SHAPES for b in (64, 32, 256)):
            matrix, rng = matrix_of(seed, shape, kind, block_size), np.random.default_rng(seed)
            weight = matrix.dequantized().astype(np.float64)
            bias = rng.standard_normal(shape[0]) if seed % 2 else None
            on_device = ops.quantized(matrix)
            for rows in ((1,), (2, 1), (3,), (2, 20), (41,)):
                x = ops.asarray(rng.standard_normal((*rows, shape[1])))
                values = np.asarray(ops.to_numpy(x), dtype=np.float64)
                expected = values @ weight.T + (0 if bias is None else bias)
                for name in ("linear", "linear_full_precision"):
                    y = getattr(ops, name)(x, on_device, None if bias is None else ops.asarray(bias))
                    scale = float((abs(values) @ abs(weight.T)).max()) + 1
                    found = np.asarray(ops.to_numpy(y))
                    limit = OPERATIONS["linear"][dtype] * (2 if backend == "cupy" else 1)  # it rounds the weights too
                    assert_close(f"{name} {shape} {rows}", found, expected, limit, scale)


@pytest.mark.parametrize("loops", LOOPS, indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_numbers_are_the_golden_ones_bit_for_bit(kind: str, loops: None) -> None:
    for seed, (shape, block_size) in enumerate((s, b) for s in SHAPES for b in (32, 64, 4096)):
        matrix = matrix_of(seed, shape, kind, block_size)
        expected = matrix.dequantized()
        for start in range(shape[0]):
            out = np.full((shape[0] - start, shape[1]), np.nan, dtype=np.float32)
            pegasusx_numpy.quantized.dequantize_into(out, matrix, start)
            np.testing.assert_array_equal(out, expected[start:])


@pytest.mark.parametrize("kind", KINDS)
def test_torch_s_operations_dequantize_bit_for_bit(kind: str) -> None:
    """Those that run on a GPU, here on a CPU."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from pegasusx_torch.quantized import code_pairs, dequantized_on_device

    pairs = code_pairs(torch.device("cpu"))
    for seed, shape in enumerate(SHAPES):
        matrix = matrix_of(seed, shape, kind)
        for start, stop in ((0, shape[0]), (shape[0] // 2, shape[0]), (shape[0] - 1, shape[0])):
            found = dequantized_on_device(matrix.map(torch.from_numpy), pairs, start, stop)
            np.testing.assert_array_equal(found.numpy(), matrix.dequantized()[start:stop])


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@pytest.mark.parametrize("kind", KINDS)
def test_tables_agree(kind: str, backend: str, dtype: str) -> None:
    ops = backend_on_cpu(backend, dtype)
    for shape in ((9, 64), (9, 128), (9, 32), (9, 10)):
        matrix, ids = matrix_of(0, shape, kind), np.array([[0, 8, 3], [3, 3, 1]])
        found = np.asarray(ops.to_numpy(ops.embed_tokens(ops.asarray(ids), ops.quantized(matrix), 8.0)))
        expected = matrix.dequantized().astype(np.float64)[ids] * 8
        assert_close(f"table {shape}", found, expected, OPERATIONS["embed_tokens"][dtype], abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@settings(max_examples=15)
@given(st.data())
def test_models_agree(backend: str, dtype: str, data: st.DataObject) -> None:
    """A model with quantized weights, tables included, equals the golden one with the numbers that they stand for."""
    config = data.draw(configs(layer_norm_eps=1e-5, init_std=0.2))
    batch, kind = data.draw(batches(config)), data.draw(st.sampled_from(KINDS))
    weights = quantized_weights(config, data.draw(seeds), kind)
    model = PegasusXForConditionalGeneration(config, weights, backend_on_cpu(backend, dtype))
    golden = PegasusXForConditionalGeneration(config, model.state_dict(), backend_on_cpu("numpy", "float64"))
    found, expected = model(**batch._asdict()).logits, golden(**batch._asdict()).logits
    assert_close(f"logits on {backend} {dtype}", found, expected, MODEL[dtype])


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_the_embedded_checkpoint_writes_what_its_dequantized_weights_write(backend: str, dtype: str) -> None:
    kind = "nf4-double" if dtype in ("float64", "bfloat16") else "int8"
    text = "This library reads and writes PNG images. It supports alpha channels and interlacing, and is fast."
    tensors, config = load_weights(DEMO_CHECKPOINT, PegasusXConfig.from_pretrained(DEMO_CHECKPOINT), True)
    layers = {name: "layers" in name and tensor.ndim == 2 for name, tensor in tensors.items()}
    weights = {
        name: QuantizedMatrix.quantize(np.asarray(tensor, np.float32), kind) if layers[name] else tensor
        for name, tensor in tensors.items()
    }
    ids = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)([text])["input_ids"]
    model = PegasusXForConditionalGeneration(config, weights, backend_on_cpu(backend, dtype))
    golden = PegasusXForConditionalGeneration(config, model.state_dict(), backend_on_cpu("golden", "float64"))
    for beams in (1, 4):
        expected = golden.generate(ids, num_beams=beams, max_new_tokens=12)
        assert model.generate(ids, num_beams=beams, max_new_tokens=12).tolist() == expected.tolist()


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_stay_packed(kind: str, backend: str) -> None:
    """In the model's memory, and in a pickle of it."""
    config = PegasusXConfig.preset("tiny", d_model=64)
    weights = quantized_weights(config, 0, kind)
    model = PegasusXForConditionalGeneration(config, weights, backend_on_cpu(backend, "float64"))
    assert repr(model).endswith(f" on {model.device}, weights in {kind.removesuffix('-double')}>")
    stored = model._stored("shared.weight")
    np.testing.assert_array_equal(stored.codes, weights["shared.weight"].codes)
    assert stored.nbytes <= (0.145 if kind != "int8" else 0.27) * 4 * config.vocab_size * 64
    assert model.num_parameters() == sum(int(np.prod(w.shape)) for w in weights.values())
    if backend != "cupy":
        copy = pickle.loads(pickle.dumps(model))
        ids = [[5, 6, 7]]
        np.testing.assert_array_equal(copy.encode(ids).last_hidden_state, model.encode(ids).last_hidden_state)


@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_a_quantized_model_does_not_change_the_backend_of_others(backend: str) -> None:
    """Compiled loops multiply its float32 matrices too, which rounds differently."""
    config = PegasusXConfig.preset("tiny", d_model=256)
    ops, weights = backend_on_cpu(backend, "float32"), quantized_weights(config, 0, "nf4")
    rng = np.random.default_rng(0)
    x, weight = (ops.asarray(rng.standard_normal(shape)) for shape in ((1, 1, 256), (4096, 256)))
    before = ops.to_numpy(ops.linear(x, weight))
    model = PegasusXForConditionalGeneration(config, weights, ops)
    np.testing.assert_array_equal(ops.to_numpy(ops.linear(x, weight)), before)
    if backend in ("numpy", "torch") and pegasusx_numpy.quantized.kernels():
        assert (model.ops.to_numpy(model.ops.linear(x, weight)) != before).any()  # here they round differently


def test_threads_share_a_quantized_model() -> None:
    """Only one of them has the compiled loops' threads; the results are the same."""
    matrix, x = matrix_of(0, (700, 640), "nf4"), np.random.default_rng(0).standard_normal((50, 1, 640), np.float32)
    expected = [pegasusx_numpy.quantized.linear(row, matrix) for row in x]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: pegasusx_numpy.quantized.linear(row, matrix), x))
    np.testing.assert_array_equal(found, expected)


PROGRAM = """
import multiprocessing, sys
import numpy as np
import llvmlite.binding
features = llvmlite.binding.get_host_cpu_features()
if sys.argv[1] == "AVX2":
    features.update({name: False for name in features if name.startswith("avx512")})
llvmlite.binding.get_host_cpu_features = lambda: features
from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_numpy import kernels, quantized, thread_pool

thread_pool.num_threads = lambda: 2  # also where the tests limit BLAS to one
assert kernels.HAS_AVX512 == (sys.argv[1] == "AVX-512")
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 640), np.float32)
matrices = [QuantizedMatrix.quantize(rng.standard_normal((700, 640)), kind) for kind in ("nf4", "fp4", "int8")]

def errors():
    return [abs(quantized.linear(x, matrix) - x @ matrix.dequantized().T).max() for matrix in matrices]

for matrix in matrices:
    out = np.empty((700, 640), np.float32)
    quantized.dequantize_into(out, matrix, 0)
    assert (out == matrix.dequantized()).all()
assert max(errors()) < 1e-4, errors()
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert max(pool.apply_async(errors).get(60)) < 1e-4
print([quantized.linear(x, matrix).tobytes().hex() for matrix in matrices])
"""


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2", "AVX-512"])
def test_the_loops_agree_on_older_processors_and_after_a_fork(instructions: str, tmp_path: Path) -> None:
    if instructions == "AVX-512" and not pegasusx_numpy.quantized.kernels().HAS_AVX512:
        pytest.skip("this processor has no AVX-512")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    environment |= {"NUMBA_CPU_NAME": "haswell"} if instructions == "AVX2" else {}
    command = [sys.executable, "-c", PROGRAM, instructions]
    outputs = set()
    for _ in range(2):  # the second time with the loops that the first one compiled
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert any(tmp_path.iterdir())  # the compiled loops
        outputs.add(done.stdout)
    assert len(outputs) == 1, "the loops give other bits when they are loaded"
