"""The CuPy backend without a GPU: its kernels on the CPU and through NVIDIA's compiler, its devices and messages."""

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import emulated
import fake_cupy
import numpy as np
import nvrtc
import ptx_instructions
import pytest
from backend_parameters import rounded
from hypothesis import given
from hypothesis import strategies as st
from strict_arrays import StrictArray, unwrapped

from pegasusx_ref import BackendError, PegasusXConfig, PegasusXModel, available_backends, get_backend
from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.golden.attention import attention
from pegasusx_ref.golden.global_local import block_bounds, global_local_attention
from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.tracing import listen

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "backends" / "pegasusx_cupy"
IN_CI = bool(os.environ.get("CI"))
CPU_FLAGS = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
needs_compiler = pytest.mark.skipif(emulated.COMPILER is None and not IN_CI, reason=emulated.NO_COMPILER)
needs_nvrtc = pytest.mark.skipif(nvrtc.find_library() is None and not IN_CI, reason=nvrtc.MISSING)


@pytest.fixture(scope="module")
def compilation() -> ModuleType:
    with fake_cupy.installed():
        import pegasusx_cupy.compilation

        return pegasusx_cupy.compilation


# --- the kernels on the CPU ------------------------------------------------------------------------------------------


def heads(rng: np.random.Generator, B: int, L: int, H: int, F: int, dtype: str) -> np.ndarray:
    return rounded(rng.standard_normal((B, L, H, F)), dtype).swapaxes(1, 2)


@contextmanager
def emulated_backend(arithmetic: str, backwards: bool) -> Iterator[tuple[Any, pytest.MonkeyPatch]]:
    """Yield a backend whose kernels come from FOLDER, and what can change settings while it is used."""
    options: dict[str, Any] = {"dtype": "float32", "tf32": True} if arithmetic == "tf32" else {"dtype": arithmetic}
    with pytest.MonkeyPatch.context() as patch, fake_cupy.installed():
        from pegasusx_cupy import compilation

        patch.setattr(fake_cupy, "backwards", backwards)
        patch.setattr(compilation, "FOLDER", FOLDER)
        yield get_backend("cupy", **options), patch


def core_errors(arithmetic: str, head_dim: int, backwards: bool = False) -> Generator[float]:
    """Run the attention core on several tiles of queries and keys and parts."""
    B, H, T, G, block_size = 2, 2, 300, 5, 160
    rng = np.random.default_rng(0)
    dtype = "float32" if arithmetic == "tf32" else arithmetic
    arrays: list[Any] = [heads(rng, B, length, H, head_dim, dtype) for length in (T, T, T, G, G, G)]
    mask = rng.random((B, T)) < 0.7
    mask[:, 55:190] = False  # parts of the keys without a visible one
    blocks = block_bounds(T, block_size, staggered=True)
    with emulated_backend(arithmetic, backwards) as (ops, patch):
        from pegasusx_cupy import kernels

        patch.setattr(kernels, "PART_SIZE", 64)
        found = ops.global_local_attention(*[*map(ops.asarray, arrays), ops.asarray(mask), blocks])
        expected = global_local_attention(*[*arrays, mask, blocks])
        yield from (largest_error(ops.to_numpy(x), y) for x, y in zip(found, expected, strict=True))


def few_rows_errors(dtype: str, backwards: bool = False) -> Generator[float]:
    """Run the kernels of few_rows.cu, for rows that end inside of a vector and others."""
    rng = np.random.default_rng(0)
    with emulated_backend(dtype, backwards) as (ops, patch):
        from pegasusx_cupy import compilation, kernels

        for L, K, N, many_warps in ((1, 600, 13, 1), (3, 21, 9, 2048), (11, 70, 37, 1), (4, 300, 37, 2048)):
            patch.setattr(compilation, "MANY_WARPS", many_warps)  # which divides the inputs among warps, or not
            x, weight, bias = (rounded(rng.standard_normal(shape), dtype) for shape in ((L, K), (N, K), (N,)))
            for with_bias in (True, False):
                expected = x @ weight.T + with_bias * bias
                for result_dtype in {numpy_dtype(dtype), np.dtype(SUMS[dtype])}:
                    on_device = (ops.asarray(x), ops.asarray(weight), ops.asarray(bias) if with_bias else None)
                    found = kernels.few_rows(*on_device, result_dtype)
                    assert found.dtype == result_dtype
                    yield largest_error(ops.to_numpy(found), expected) / float(np.abs(expected).max())


def few_queries_errors(dtype: str, backwards: bool = False) -> Generator[float]:
    """Run few_queries.cu on caches of both layouts and heads of several widths."""
    rng = np.random.default_rng(0)
    with emulated_backend(dtype, backwards) as (ops, _):
        for B, L, X, F in ((2, 3, 300, 24), (2, 11, 40, 3), (1, 1, 5, 300)):
            q, k, v = (heads(rng, B, length, 2, F, dtype) for length in (L, X, X))
            v = np.ascontiguousarray(v)  # as a cache
            visible = rng.random((B, L, X)) < 0.5
            visible[:, :, 70:170] = False  # a part of the keys without a visible one
            visible[0, 0, :35] = False
            visible[-1, -1] = False
            for mask in (visible, visible[:1], visible[:, :1], None):
                found = ops.attention(*map(ops.asarray, (q, k, v)), None if mask is None else ops.asarray(mask))
                yield largest_error(ops.to_numpy(found), attention(q, k, v, mask))


def rows_errors(dtype: str, backwards: bool = False) -> Generator[float]:
    """Run the kernels of rows.cu."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 200))
    x[0, 1] *= 1e30  # its variance overflows float32
    weight, bias = list(rng.standard_normal((2, 200)))
    visible = rng.random((2, 3, 300)) < 0.5
    visible[1, 2] = False
    q, k, v = (heads(rng, 2, length, 2, 4, dtype) for length in (3, 300, 300))
    with emulated_backend(dtype, backwards) as (ops, patch):
        from pegasusx_cupy import kernels

        patch.setattr(kernels, "FEW", 0)
        x, weight, bias = (array.astype(np.float32).astype(np.float64) for array in (x, weight, bias))
        copy = on_device(ops)
        normed = ops.to_numpy(kernels.layer_norm(copy(x), copy(weight), copy(bias), 1e-5, dtype))
        assert np.isnan(normed[0, 1]).all() == (dtype != "float64")
        yield largest_error(normed[:, [0, 2]], layer_norm(x, weight, bias, 1e-5)[:, [0, 2]])
        for mask in (visible, visible[:1], visible[:, :1], None):
            visible_on_device = None if mask is None else ops.asarray(mask)
            found = ops.attention(ops.asarray(q), ops.asarray(k), ops.asarray(v), visible_on_device)
            yield largest_error(ops.to_numpy(found), attention(q, k, v, mask))
        special = np.array([-np.inf, -1.5, -0.0, 0.0, 2.5, np.inf, np.copysign(np.nan, -1)] * 3)
        found = ops.to_numpy(ops.activation(ops.asarray(special[None]), "relu"))[0]
        yield largest_error(np.nan_to_num(found), np.nan_to_num(np.maximum(special, 0).astype(found.dtype)))
        assert np.isnan(found).sum() == 3
        for width in (16, 13):
            repeated = kernels.repeated_row(copy(weight[:width]), 3, numpy_dtype(dtype))
            yield largest_error(ops.to_numpy(repeated), np.tile(rounded(weight[:width], dtype), (3, 1)))
        for kind in ("nf4", "fp4", "int8"):
            quantized = QuantizedMatrix.quantize(rng.standard_normal((5, 53)), kind)
            found = ops.to_numpy(kernels.dequantized(ops.quantized(quantized), numpy_dtype(dtype)))
            yield largest_error(found, rounded(quantized.dequantized(), dtype))


def on_device(ops: Any) -> Callable[[np.ndarray], Any]:
    """Return a function that copies arrays in the dtype of sums."""
    return lambda array: ops.asarray(array) if array.ndim == 1 else ops.asarray(array.ravel()).reshape(*array.shape)


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    error = float(np.abs(found.astype(np.float64) - expected).max())
    return np.inf if np.isnan(error) else error


LIMITS = {"float64": 1e-13, "float32": 5e-6, "bfloat16": 2e-2, "float16": 3e-3}
CORE_LIMITS = LIMITS | {"tf32": 2e-3}
SUMS = {"float64": "float64", "float32": "float32", "bfloat16": "float32", "float16": "float32"}


@needs_compiler
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("arithmetic", CORE_LIMITS)
def test_the_order_of_threads_does_not_matter(arithmetic: str, backwards: bool) -> None:
    for head_dim in (24, 3, 2):
        assert max(core_errors(arithmetic, head_dim, backwards)) < CORE_LIMITS[arithmetic]
    if arithmetic in LIMITS:
        for errors in (rows_errors, few_rows_errors, few_queries_errors):
            assert max(errors(arithmetic, backwards)) < LIMITS[arithmetic], errors.__name__


@needs_compiler
def test_tf32_rounds_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """So its errors are larger than those of float32, but for heads that are too wide for its tiles."""
    assert max(core_errors("float32", 100)) < LIMITS["float32"]
    assert 1e-4 < max(core_errors("tf32", 100)) < CORE_LIMITS["tf32"]
    assert max(core_errors("tf32", 200)) < LIMITS["float32"]
    monkeypatch.setattr(fake_cupy.Device, "compute_capability", "75")
    assert max(core_errors("tf32", 24)) < LIMITS["float32"]


@needs_compiler
@pytest.mark.skipif("fma" not in CPU_FLAGS, reason="this CPU has no fused multiply-add, which GPUs use")
@pytest.mark.parametrize("dtype", LIMITS)
def test_large_equal_scores_are_equal_with_fused_multiply_adds(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC fuses a product with the addition after it, which is not rounded then: the largest score stays exact."""
    rng = np.random.default_rng(0)
    size = 2.0 ** (7 if dtype == "float16" else 17)  # of which sums are exact in any order
    shapes = [(1, length, 1, 64) for length in (40, 40, 40, 3, 3, 3)]
    arrays: list[Any] = [rounded(size * rng.integers(1, 3, shape), dtype).swapaxes(1, 2) for shape in shapes]
    with fake_cupy.installed():
        from pegasusx_cupy import compilation

        monkeypatch.setattr(compilation, "COMPILER_OPTIONS", ("--fmad=true",))
        ops: Any = get_backend("cupy", dtype=dtype)
        blocks = block_bounds(40, 16, staggered=True)
        found = ops.global_local_attention(*[*map(ops.asarray, arrays), None, blocks])
        expected = global_local_attention(*[*arrays, None, blocks])
        for x, y in zip(found, expected, strict=True):
            assert largest_error(ops.to_numpy(x) / size, y / size) < LIMITS[dtype]
        q, k, v = arrays[:3]
        found = ops.to_numpy(ops.attention(*map(ops.asarray, (q, k, v))))
        assert largest_error(found / size, attention(q, k, v) / size) < LIMITS[dtype]


@needs_compiler
def test_arrays_that_a_listener_replaced_are_converted() -> None:
    """Their dtype, and an address that is no multiple of 16 bytes."""
    rng = np.random.default_rng(0)
    arrays = [heads(rng, 1, length, 2, 8, "bfloat16") for length in (20, 20, 20, 3, 3, 3)]
    with fake_cupy.installed():
        ops: Any = get_backend("cupy", dtype="bfloat16")
        expected = [ops.to_numpy(x) for x in ops.global_local_attention(*[*map(ops.asarray, arrays), None, [(0, 20)]])]
        for i in range(6):
            on_device = [*map(ops.asarray, arrays)]
            on_device[i] = on_device[i].astype(np.float32)
            found = ops.global_local_attention(*[*on_device, None, [(0, 20)]])
            for x, y in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ops.to_numpy(x), y)
        q, k, v = arrays[:3]
        expected = [ops.to_numpy(ops.attention(*map(ops.asarray, (q, k, v))))]
        padding = ((0, 0), (0, 0), (0, 0), (1, 0))
        odd_k, odd_v = (StrictArray(unwrapped(ops.asarray(np.pad(x, padding)))[..., 1:]) for x in (k, v))
        assert odd_k.data.ptr % 16
        found = [ops.to_numpy(ops.attention(ops.asarray(q), odd_k, odd_v))]
        np.testing.assert_array_equal(found, expected)
        odd = ops.asarray(np.arange(-20.0, 32.0).reshape(1, 4, 13))[:, 1:]
        assert odd.data.ptr % 16
        np.testing.assert_array_equal(ops.to_numpy(ops.activation(odd, "relu")), np.maximum(ops.to_numpy(odd), 0))
        assert ops.activation(odd[:, :0], "relu").shape == (1, 0, 13)


def test_half_precision_needs_an_ampere_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.Device, "compute_capability", "75")
    with fake_cupy.installed():
        assert get_backend("cupy", dtype="float32").dtype == "float32"
        with pytest.raises(BackendError, match=r"from compute capability 8\.0 on, and cuda:0 has 7\.5: use dtype="):
            get_backend("cupy", dtype="bfloat16")


# File, label of a line, a pattern that occurs once in its code, and what replaces it.
CORE, FMA, MMA, ROWS = "attention.cu", "attend_fma.cuh", "attend_mma.cuh", "rows.cu"
MERGE, REDUCTION, FEW_ROWS, FEW_QUERIES = "merge_parts.cuh", "reduction.cuh", "few_rows.cu", "few_queries.cu"
MUTATIONS = {
    "the first head for all heads": (CORE, "head", r"blockIdx\.y", "0"),
    "keys beyond the last are visible": (CORE, "keys beyond the last", r"false", "true"),
    "the first row's mask for all rows": (CORE, "padding mask", r"blockIdx\.z", "0"),
    "no stagger": (CORE, "block start", r"\? \w+ \+ \((\w+) - 1\)", r"? \1"),
    "blocks one token too late": (CORE, "block start", r"\? ", "? 1 + "),
    "no global tokens": (CORE, "number of keys", r"num_globals \+ ", ""),
    "parts overwrite each other": (CORE, "rows of a part", r"gridDim\.z", "0"),
    "totals of parts are not rescaled": (MERGE, "total of all parts", r" \* exp_of\(.*\)", ""),
    "sums of parts are not rescaled": (MERGE, "sum of all parts", r" \* exp_of\(.*\)", ""),
    "no barrier before the tiles are loaded": (FMA, "barrier before loading", r"__syncthreads\(\);", ""),
    "no barrier after the tiles are loaded": (FMA, "barrier after loading", r"__syncthreads\(\);", ""),
    "no scale": (FMA, "scale", r" \*= \w+;", " *= 1;"),
    "scale by F": (FMA, "value of the scale", r"\bsqrt\b", ""),
    "padding is visible": (FMA, "masked", r"visible\[.*\] \? (.*) : \(REAL\)0", r"\1"),
    "sums are not rescaled": (FMA, "rescale the sums", r"\*= \w+", "*= 1"),
    "totals are not rescaled": (FMA, "rescale the total", r" \* \w+ \+", " +"),
    "the sum of a row over half of its lanes": (FMA, "row sum", r"= \w+ / 2;", "= 1;"),
    "the maximum is not kept": (FMA, "keep the largest", r"\S+ = \S+;", ";"),
    "global keys as global values": (FMA, "values", r"source\.global_values", "source.global_keys"),
    "no normalization": (FMA, "normalization", r" / \S+;", ";"),
    "the last tile of keys is missing": (FMA, "key tiles", r"(tile) < (\S+);", r"\1 + KEYS < \2;"),
    "no barrier between tiles": (MMA, "barrier", r"__syncthreads\(\);", ""),
    "no wait for the copies": (MMA, "wait for the copies", r"finish_copies\(\);", ""),
    "the next tile over this one": (MMA, "the other tile", r"stage \^ 1", "stage"),
    "scale by F on tensor cores": (MMA, "scale", r"\bsqrt\b", ""),
    "padding is visible on tensor cores": (MMA, "masked", r"-infinity", "0"),
    "sums are not rescaled on tensor cores": (MMA, "rescale the sums", r"\*= \w+", "*= 1"),
    "totals are not rescaled on tensor cores": (MMA, "rescale the total", r" \* \w+ \+", " +"),
    "half of the sum of a row on tensor cores": (MMA, "row sum", r"lane = 2;", "lane = 1;"),
    "the maximum is not kept on tensor cores": (MMA, "keep the largest", r"\S+ = \S+;", ";"),
    "global keys as values on tensor cores": (MMA, "values", r"source\.global_values", "source.global_keys"),
    "no normalization on tensor cores": (MMA, "normalization", r" / total\[r\]\[half\]", ""),
    "weights of other keys in TF32": (MMA, "weights", r"i % 2 \* 2 \+ i / 2", "i"),
    "the last tile is missing on tensor cores": (MMA, "tiles", r"(first_key) < (\S+);", r"\1 + KEYS < \2;"),
    "no barrier before combining": (REDUCTION, "barrier before combining", r"__syncthreads\(\);", ""),
    "no barrier after combining": (REDUCTION, "barrier after combining", r"__syncthreads\(\);", ""),
    "an overflow is hidden": (ROWS, "overflow", r"\+= .*;", "+= 0;"),
    "no square root": (ROWS, "deviation", r"sqrt", ""),
    "masked keys have the largest score": (ROWS, "visible", r"!visible \|\| visible\[i\]", "true"),
    "masked keys have weights": (ROWS, "masked", r"visible && !visible\[i\] \? \(REAL\)0 : ", ""),
    "nothing visible is 0 / 0": (ROWS, "nothing is visible", r"weight = 1", "weight = 0"),
    "relu of NaN": (ROWS, "positive", r" && .*\?", " ?"),
    "the second number of a byte first": (ROWS, "bits", r"% 2 \?", "% 2 == 0 ?"),
    "the first number's scale for a vector": (ROWS, "the next row", r"\+\+row", ""),
    "no barrier before merging": (MERGE, "barrier before merging", r"__syncthreads\(\);", ""),
    "no barrier after merging": (MERGE, "barrier after merging", r"__syncthreads\(\);", ""),
    "no barrier before the inputs' parts are added": (FEW_ROWS, "barrier before adding", r"__syncthreads\(\);", ""),
    "the first part of the inputs only": (FEW_ROWS, "parts of the inputs", r"other < SPLIT", "other < 1"),
    "sums of some lanes only": (FEW_ROWS, "fewer sums than lanes", r"step = 16", "step = 8"),
    "half of the lanes' sums": (FEW_ROWS, "halves", r"kept \+ ", "kept + 0 * "),
    "the last inputs are missing": (FEW_ROWS, "inputs", r"\(num_inputs \+ VECTOR - 1\)", "num_inputs"),
    "no bias": (FEW_ROWS, "bias", r"\+= bias\[feature\]", "+= 0"),
    "scale by F for few queries": (FEW_QUERIES, "value of the scale", r"\bsqrt\b", ""),
    "no scale for few queries": (FEW_QUERIES, "scale", r" \* scale", ""),
    "the first head's keys for all heads": (FEW_QUERIES, "place of the keys", r" \+ head \* key_head", ""),
    "the first query's mask for all queries": (FEW_QUERIES, "row of the mask", r" \+ query \* visible_query", ""),
    "what sees nothing sees everything": (FEW_QUERIES, "nothing is visible", r"sees_none\[r\] \? 0 : ", ""),
    "a query that sees late keys only sees none": (FEW_QUERIES, "later keys", r"!sees_any\(.*\)", "true"),
    "few queries see padding": (FEW_QUERIES, "visible", r"\(!shown.*\)", "true"),
    "half of the lanes of a key": (FEW_QUERIES, "lanes of a key", r"LANES / 2", "LANES / 4"),
    "half of the keys": (FEW_QUERIES, "tiles of keys", r"\+= KEYS", "+= 2 * KEYS"),
    "totals of few queries are not rescaled": (FEW_QUERIES, "rescale the total", r"\*= \w+", "*= 1"),
    "sums of few queries are not rescaled": (FEW_QUERIES, "rescale the sums", r"\*= \w+", "*= 1"),
    "the other group's largest score": (FEW_QUERIES, "largest of the groups", r"\? other : \w+", "? other : other"),
    "sums of groups are not rescaled": (FEW_QUERIES, "rescale the groups", r"\*= \w+", "*= 1"),
    "parts of few queries overwrite each other": (FEW_QUERIES, "row of a part", r"= part \*", "= 0 *"),
    "no normalization for few queries": (FEW_QUERIES, "normalization", r" / total\[r\]", ""),
}


def mutated(source: str, label: str, pattern: str, replacement: str) -> str:
    """Change the line of a source that a comment labels."""
    labelled = [line for line in source.splitlines() if f"  // [{label}]" in line]
    assert len(labelled) == 1, f"[{label}] labels {len(labelled)} lines"
    code, _, comment = labelled[0].partition("  //")
    changed, count = re.subn(pattern, replacement, code)
    assert count == 1, f"{pattern} occurs {count} times in {code!r}"
    return source.replace(labelled[0], f"{changed}  //{comment}")


@needs_compiler
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_of_a_kernel_is_detected(mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *change = MUTATIONS[mutation]
    arithmetic = "tf32" if mutation.endswith("TF32") else "bfloat16" if name in (MMA, ROWS) else "float64"
    for path in [*FOLDER.glob("*.cu"), *FOLDER.glob("*.cuh")]:
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(mutated(text, *change) if path.name == name else text, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "FOLDER", tmp_path)
    assert any(fails(name, arithmetic, backwards) for backwards in (False, True))


def fails(name: str, arithmetic: str, backwards: bool) -> bool:
    """Return whether an error is several times as large as rounding explains, or a check of the results fails."""
    of_files = {ROWS: rows_errors, FEW_ROWS: few_rows_errors, FEW_QUERIES: few_queries_errors}
    of_core = partial(core_errors, head_dim=40 if name == MERGE else 24)
    limit = 3 * CORE_LIMITS[arithmetic]
    try:
        with np.errstate(all="ignore"), closing(of_files.get(name, of_core)(arithmetic, backwards=backwards)) as errors:
            return any(error > limit for error in errors)
    except AssertionError:
        return True


def test_a_mutation_of_a_missing_line_fails() -> None:
    source = (FOLDER / FMA).read_text(encoding="utf-8")
    with pytest.raises(AssertionError, match="labels 0 lines"):
        mutated(source, "no such line", "a", "b")
    with pytest.raises(AssertionError, match="occurs 0 times"):
        mutated(source, "scale", "no such code", "b")


# --- the instructions of ptx.cuh -------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("arithmetic", ["bfloat16", "float16", "tf32"])
def test_emulated_instructions_compute_what_the_manual_says(arithmetic: str) -> None:
    source, options = ptx_instructions.source(arithmetic), ptx_instructions.options(arithmetic)

    def launch(name: str, inputs: list[np.ndarray], *results: np.ndarray) -> list[np.ndarray]:
        emulated.launch(source, options, name, (1, 1, 1), 32, (*inputs, *results))
        return [*results]

    ptx_instructions.check(arithmetic, launch)


# --- the kernels for the GPU -----------------------------------------------------------------------------------------


KERNELS = {
    "rows.cu": {"layer_norm", "softmax", "repeat_row", "relu", "dequantize_4bit", "dequantize_int8"},
    "attention.cu": {"local_attention", "global_attention", "merge_parts"},
    "few_rows.cu": {"few_rows", "few_rows_full_precision"},
    "few_queries.cu": {"few_queries", "merge_parts"},
}


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("arithmetic", CORE_LIMITS)
def test_kernels_compile_for_gpus_without_spills(compilation: ModuleType, architecture: str, arithmetic: str) -> None:
    sources = [("attention.cu", compilation.attention_macros(arithmetic, F)) for F in (48, 64, 128)]
    if arithmetic in LIMITS:
        sources.append(("rows.cu", compilation.row_macros(arithmetic)))
        sources += [("few_rows.cu", compilation.few_rows_macros(arithmetic, 8, 1000, N)) for N in (1000, 96103)]
        sources += [("few_queries.cu", compilation.few_queries_macros(arithmetic, 8, F)) for F in (64, 256)]
    for name, macros in sources:
        options = ["--std=c++14", *(f"-D{macro}={value}" for macro, value in macros.items())]
        cubin = nvrtc.compile_for(compilation.source(name), options, architecture)
        found = nvrtc.resources(cubin)
        assert set(found) == KERNELS[name]
        for kernel, used in found.items():
            assert used.stack == 0, (
                f"{kernel} of {name} for {arithmetic}, {macros.get('HEAD_DIM')}, spills {used.stack} bytes"
            )
            assert used.shared <= compilation.SHARED_MEMORY
            assert 0 < used.registers <= 255


@needs_nvrtc
def test_an_error_in_a_kernel_is_reported(compilation: ModuleType) -> None:
    options = [f"-D{macro}={value}" for macro, value in compilation.row_macros("float32").items()]
    with pytest.raises(RuntimeError, match="identifier"):
        nvrtc.compile_for(compilation.source("rows.cu") + "int broken = undeclared;", options, "sm_90")


def test_tiles_fit_into_shared_memory_and_registers(compilation: ModuleType) -> None:
    assert compilation.tile_for(64, "float32") == (64, 32, 128)
    assert compilation.tile_for(64, "float64") == (32, 16, 128)
    assert compilation.tile_for(128, "float32") == (32, 16, 128)
    assert compilation.tile_for(128, "float64") == (16, 8, 128)
    assert compilation.tile_for(512, "float64") is None
    assert compilation.tile_for(64, "bfloat16") == (128, 64, 128)
    assert compilation.tile_for(65, "float16") == (64, 32, 128)
    assert compilation.tile_for(257, "bfloat16") is None
    assert compilation.tile_for(64, "tf32") == (128, 32, 128)
    assert compilation.tile_for(129, "tf32") is None


@needs_compiler
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_heads_that_are_too_wide_for_a_tile_are_computed_block_by_block(dtype: str) -> None:
    rng = np.random.default_rng(0)
    with fake_cupy.installed():
        ops: Any = get_backend("cupy", dtype=dtype)
        arrays: list[Any] = [heads(rng, 1, length, 1, 600, dtype) for length in (5, 5, 5, 2, 2, 2)]
        blocks = [(0, 3), (3, 5)]
        found = ops.global_local_attention(*[*map(ops.asarray, arrays), None, blocks])
        expected = global_local_attention(*[*arrays, None, blocks])
        assert str(found[0].dtype) == dtype
        assert all(largest_error(ops.to_numpy(x), y) < LIMITS[dtype] for x, y in zip(found, expected, strict=True))


# --- products by cuBLAS ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LIMITS)
@given(st.data())
def test_products_of_strided_matrices(dtype: str, data: st.DataObject) -> None:
    """Rows, heads and batch rows at any distance, transposed or not, rounded once."""
    B, H, L, K, N = (data.draw(st.integers(1, 4)) for _ in range(5))
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    transposed, stacked = data.draw(st.booleans()), data.draw(st.booleans())

    def draw(rows: int, width: int) -> np.ndarray:
        """A stack as heads are split from a projection, or its transposed matrices, or a matrix; or a part of one."""
        kind = data.draw(st.sampled_from(["heads", "transposed", "contiguous", "part"]))
        numbers = rounded(rng.standard_normal((B, rows + 1, H, width + 2)), dtype)
        match kind:
            case "heads":
                found = numbers[:, :rows, :, :width].swapaxes(1, 2)
            case "transposed":
                found = rounded(rng.standard_normal((B, H, width, rows)), dtype).swapaxes(2, 3)
            case "contiguous":
                found = np.ascontiguousarray(numbers[:, :rows, :, :width].swapaxes(1, 2))
            case _:
                found = rounded(rng.standard_normal((B, H, rows + 2, width + 1)), dtype)[:, :, 1:-1, 1:]
        return found if stacked else found[0, 0]

    x, y = draw(L, K), draw(N, K) if transposed else draw(K, N)
    bias = None if stacked else rng.standard_normal(N)
    with fake_cupy.installed():
        from pegasusx_cupy.products import product

        ops = get_backend("cupy", dtype=dtype)
        left, right = (strided_on_device(array, dtype) for array in (x, y))
        sums = "float64" if dtype == "float64" else "float32"
        for result_dtype in {dtype, sums}:
            bias_on_device = None if bias is None else ops.asarray(bias)
            found = product(left, right, numpy_dtype(result_dtype), transposed, 0.5, bias_on_device)
            expected = 0.5 * (x @ (y.swapaxes(-1, -2) if transposed else y)) + (0 if bias is None else bias)
            assert str(found.dtype) == result_dtype
            limit = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 2**-6, "float16": 2**-9}[result_dtype]
            assert largest_error(unwrapped(found).astype(np.float64), expected) <= limit * (np.abs(expected).max() + 4)


def strided_on_device(array: np.ndarray, dtype: str) -> StrictArray:
    """Copy an array in a dtype with the same strides, in numbers: as a view of a larger one."""
    steps = [step // array.itemsize for step in array.strides]
    memory = np.full(1 + sum((n - 1) * step for n, step in zip(array.shape, steps, strict=True)), np.nan)
    view = np.lib.stride_tricks.as_strided(memory, array.shape, [8 * step for step in steps])
    view[...] = array
    memory = memory.astype(numpy_dtype(dtype))
    return StrictArray(np.lib.stride_tricks.as_strided(memory, array.shape, [memory.itemsize * step for step in steps]))


def test_tf32_is_used_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_types: list[int] = []
    with fake_cupy.installed():
        import cupy

        multiply = cupy.cuda.cublas.gemmStridedBatchedEx

        def record(*arguments: int) -> None:
            compute_types.append(arguments[-2])
            multiply(*arguments)

        monkeypatch.setattr(cupy.cuda.cublas, "gemmStridedBatchedEx", record)
        x, weight = np.ones((1, 100, 4)), np.ones((3, 4))
        for dtype, tf32 in (("float32", False), ("float32", True), ("float64", True), ("bfloat16", True)):
            ops = get_backend("cupy", dtype=dtype, tf32=tf32)
            ops.linear(ops.asarray(x), ops.asarray(weight))
            assert pickle.loads(pickle.dumps(ops)).tf32 == tf32
    assert compute_types == [68, 77, 70, 68]


# --- strict arrays ---------------------------------------------------------------------------------------------------


def test_strict_arrays_refuse_what_cupy_refuses() -> None:
    strict, host = StrictArray(np.ones(3)), np.ones(3)
    for mix in (lambda: strict + host, lambda: host + strict, lambda: np.concatenate([strict, host])):
        with pytest.raises(TypeError, match="host"):
            mix()
    for convert in (lambda: np.array(strict), lambda: np.linalg.norm(strict), lambda: np.kron(strict, strict)):
        with pytest.raises(TypeError):
            convert()
    with pytest.raises(TypeError, match="was not checked against CuPy"):
        np.add.accumulate(strict)
    assert isinstance(strict + strict, StrictArray)
    assert isinstance(np.exp(strict), StrictArray)


# --- devices and messages --------------------------------------------------------------------------------------------


def test_an_unavailable_device_is_refused() -> None:
    with fake_cupy.installed():
        assert get_backend("cupy").device == "cuda:0"
        assert get_backend("cupy", device=0).device == get_backend("cupy", device="auto").device == "cuda:0"
        for device in ("cpu", "cuda:1", 1):
            with pytest.raises(BackendError, match=f"backend 'cupy' has no device {device!r}: available here: cuda:0"):
                get_backend("cupy", device=device)
        with pytest.raises(BackendError, match="'cupy' does not compute in 'int8': it declares float32, float64, bf"):
            get_backend("cupy", dtype="int8")
        assert available_backends()["cupy"].devices == ("cuda:0",)


@needs_compiler
def test_every_thread_computes_on_the_models_device() -> None:
    """CuPy's current device is that of a thread: 0 in a new one, and any in one that uses several models."""
    config = PegasusXConfig.preset("tiny")
    with fake_cupy.installed(num_devices=2):
        import cupy

        models = [PegasusXModel.from_random(config, backend="cupy", device=f"cuda:{i}") for i in (0, 1)]
        found: list[tuple[int, int]] = []

        def run(number: int) -> None:
            points = ("*.tokens.input", "*.self_attn_layer_norm", "decoder.layers.*.input", "decoder.layer_norm")
            with listen(lambda name, value: found.append((number, cupy.cuda.Device().id)), *points):
                encoded = models[number].encode([[7, 8, 9]])
                models[number](encoder_outputs=encoded, decoder_input_ids=[[0, 7]])

        for number in (1, 0, 1):
            thread = Thread(target=run, args=(number,))
            thread.start()
            thread.join()
            run(number)
    assert {number for number, _ in found} == {0, 1}
    assert all(number == device for number, device in found)


def test_the_command_line_reports_the_reason_in_one_line(wordy_folder: Path) -> None:
    """Without CuPy the line names the extra; with CuPy but without a driver it names the driver."""
    if find_spec("cupy") is not None:
        import cupy

        if cupy.cuda.is_available():
            pytest.skip("there is a CUDA device: the backend runs")
        reason = "CuPy finds no CUDA device: it needs an NVIDIA GPU and its driver"
    else:
        reason = "CuPy is not installed: pip install 'pegasusx-ref[cupy]' (CUDA 12) or '[cupy13]'"
    command = [sys.executable, "-m", "pegasusx_ref", "summarize", "--backend", "cupy", "--model", str(wordy_folder)]
    done = subprocess.run(command, input="A text.", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(reason)
    problem = available_backends()["cupy"].problem
    assert problem is not None
    assert problem.endswith(reason)
