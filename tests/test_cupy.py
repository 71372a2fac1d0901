"""The CuPy backend without a GPU: its kernels on the CPU and through NVIDIA's compiler, its devices and messages."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from types import ModuleType

import emulated
import fake_cupy
import numpy as np
import nvrtc
import pytest
from strict_arrays import StrictArray
from tolerances import assert_close

from pegasusx_ref import BackendError, PegasusXConfig, PegasusXModel, available_backends, get_backend
from pegasusx_ref.golden.global_local import block_bounds, global_local_attention
from pegasusx_ref.tracing import listen

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[1] / "backends" / "pegasusx_cupy" / "attention.cu"
IN_CI = bool(os.environ.get("CI"))
needs_compiler = pytest.mark.skipif(emulated.COMPILER is None and not IN_CI, reason=emulated.NO_COMPILER)
needs_nvrtc = pytest.mark.skipif(nvrtc.find_library() is None and not IN_CI, reason=nvrtc.MISSING)


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    with fake_cupy.installed():
        import pegasusx_cupy.kernels

        return pegasusx_cupy.kernels


def compiler_options(kernels: ModuleType, dtype: str, head_dim: int) -> list[str]:
    return [f"-D{name}={value}" for name, value in kernels.macros(dtype, head_dim).items()]


# --- the kernels on the CPU ------------------------------------------------------------------------------------------


def run_local(source: str, backwards: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Run the local kernel, on several tiles of queries and keys, and the golden function."""
    with fake_cupy.installed():
        from pegasusx_cupy.kernels import macros, tile_for
    B, H, T, G, F, block_size = 2, 2, 150, 5, 12, 80
    rng = np.random.default_rng(seed)
    tokens = [rng.standard_normal((B, T, H, F)) for _ in range(3)]
    globals_ = [rng.standard_normal((B, G, H, F)) for _ in range(3)]
    mask = rng.random((B, T)) < 0.7
    blocks = block_bounds(T, block_size, staggered=True)
    tile = tile_for(F, 8)
    assert tile is not None
    tiles = -(-block_size // tile[0])
    assert tiles > 1
    context = np.full_like(tokens[0], np.nan)
    arguments = (*tokens, globals_[1], globals_[2], mask.view(np.uint8), context, T, G, blocks[0][1], block_size, tiles)
    options = tuple(f"-D{name}={value}" for name, value in macros("float64", F).items())
    grid = (len(blocks) * tiles, H, B)
    emulated.launch(source, options, "local_attention", grid, 128, arguments, backwards)
    q, k, v, global_q, global_k, global_v = (x.swapaxes(1, 2) for x in (*tokens, *globals_))
    expected, _ = global_local_attention(q, k, v, global_q, global_k, global_v, mask, blocks)
    return context.swapaxes(1, 2), expected


@needs_compiler
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_the_order_of_threads_does_not_matter(backwards: bool) -> None:
    found, expected = run_local(SOURCE.read_text(), backwards)
    assert_close("context", found, expected, 1e-14)


# The label of a line of attention.cu, a pattern that occurs once in its code, and what replaces it.
MUTATIONS = {
    "no barrier before the tiles are loaded": ("barrier before loading", r"__syncthreads\(\);", ""),
    "no barrier after the tiles are loaded": ("barrier after loading", r"__syncthreads\(\);", ""),
    "no scale": ("scale", r" \* \w+;", ";"),
    "scale by F": ("value of the scale", r"\bsqrt\b", ""),
    "padding is visible": ("visible keys", r" && .*;", ";"),
    "keys beyond the block are visible": ("visible keys", r"= .* && ", "= "),
    "the first row's mask for all rows": ("padding mask", r"\[.* \+ ", "["),
    "no stagger": ("block start", r"\? \w+ \+ \((\w+) - 1\)", r"? \1"),
    "blocks one token too late": ("block start", r"\? ", "? 1 + "),
    "sums are not rescaled": ("rescale the sums", r"\*= \w+", "*= 1"),
    "totals are not rescaled": ("rescale the total", r" \* \w+ \+", " +"),
    "the sum of a row over half of its lanes": ("row sum", r"= \w+ / 2;", "= 1;"),
    "the maximum is not kept": ("keep the largest", r"\S+ = \S+;", ";"),
    "no global tokens": ("number of keys", r"= \S+ \+ ", "= "),
    "the first head for all heads": ("head", r"blockIdx\.y", "0"),
    "global keys as global values": ("global values", r"global_values", "global_keys"),
    "no normalization": ("normalization", r" / \S+;", ";"),
    "the last tile of keys is missing": ("key tiles", r"(\w+) < (\w+); \1 \+= (\w+)", r"\1 + \3 < \2; \1 += \3"),
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
def test_a_mutation_of_a_kernel_is_detected(mutation: str) -> None:
    source = mutated(SOURCE.read_text(), *MUTATIONS[mutation])
    errors = []
    for backwards in (False, True):
        found, expected = run_local(source, backwards)
        errors.append(np.inf if np.isnan(found).any() else np.abs(found - expected).max())
    assert max(errors) > 1e-3


def test_a_mutation_of_a_missing_line_fails() -> None:
    with pytest.raises(AssertionError, match="labels 0 lines"):
        mutated(SOURCE.read_text(), "no such line", "a", "b")
    with pytest.raises(AssertionError, match="occurs 0 times"):
        mutated(SOURCE.read_text(), "scale", "no such code", "b")


# --- the kernels for the GPU -----------------------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("head_dim", [8, 48, 64, 128])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_compile_for_gpus(kernels: ModuleType, architecture: str, head_dim: int, dtype: str) -> None:
    options = ["--std=c++14", *compiler_options(kernels, dtype, head_dim)]
    cubin = nvrtc.compile_for(SOURCE.read_text(), options, architecture)
    assert cubin.startswith(b"\x7fELF")
    assert b"local_attention" in cubin
    assert b"global_attention" in cubin


@needs_nvrtc
def test_an_error_in_a_kernel_is_reported(kernels: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="identifier"):
        nvrtc.compile_for(
            SOURCE.read_text() + "int broken = undeclared;", compiler_options(kernels, "float32", 8), "sm_90"
        )


def test_tiles_fit_into_shared_memory(kernels: ModuleType) -> None:
    assert kernels.tile_for(64, 4) == (64, 32)
    assert kernels.tile_for(64, 8) == (32, 16)
    assert kernels.tile_for(128, 4) == (32, 16)
    assert kernels.tile_for(128, 8) == (16, 8)
    assert kernels.tile_for(512, 8) is None


# --- strict arrays ---------------------------------------------------------------------------------------------------


def test_strict_arrays_refuse_what_cupy_refuses() -> None:
    strict, host = StrictArray(np.ones(3)), np.ones(3)
    for mix in (lambda: strict + host, lambda: host + strict, lambda: np.concatenate([strict, host])):
        with pytest.raises(TypeError, match="host"):
            mix()
    for convert in (lambda: np.array(strict), lambda: np.linalg.norm(strict), lambda: np.kron(strict, strict)):
        with pytest.raises(TypeError):
            convert()
    with pytest.raises(TypeError, match="CuPy does not document"):
        np.add.accumulate(strict)
    assert isinstance(strict @ strict, StrictArray)
    assert isinstance(np.exp(strict)[0], StrictArray)


# --- devices and messages --------------------------------------------------------------------------------------------


def test_an_unavailable_device_is_refused() -> None:
    with fake_cupy.installed():
        assert get_backend("cupy").device == "cuda:0"
        assert get_backend("cupy", device=0).device == get_backend("cupy", device="auto").device == "cuda:0"
        for device in ("cpu", "cuda:1", 1):
            with pytest.raises(BackendError, match=f"backend 'cupy' has no device {device!r}: available here: cuda:0"):
                get_backend("cupy", device=device)
        with pytest.raises(BackendError, match="'cupy' does not compute in 'float16': it declares float32, float64"):
            get_backend("cupy", dtype="float16")
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
