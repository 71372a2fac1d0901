"""The quantized vector: its files are those of a new run and of bitsandbytes, and C and C++ decode them."""

import ctypes
import itertools
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from emulated import COMPILER
from safetensors.numpy import load_file, save_file

from pegasusx_ref.cli import main
from pegasusx_ref.golden import quantization as golden
from pegasusx_ref.verification.vectors.quantized import MATRICES, QUANTIZED_FILES

SPEC = Path(__file__).parents[1] / "spec"
FOLDER = SPEC / "vectors" / "quantized"
MAX_BYTES = 100_000
STATE = "weight.quant_state.bitsandbytes__"
C_COMPILER = shutil.which("gcc") or shutil.which("cc")


@cache
def tensors(file: str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(FOLDER / f"{file}.safetensors")
    return found


def packed_matrix(name: str) -> dict[str, Any]:
    """Return the tensors of a matrix by the end of their names, and its state."""
    found: dict[str, Any] = {
        k.removeprefix(f"{name}."): v for k, v in tensors("packed").items() if k.startswith(f"{name}.")
    }
    states = [json.loads(tensor.tobytes()) for end, tensor in found.items() if end.startswith(STATE)]
    return found | {"state": states[0] if states else None}


def to_bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)


# --- the files -------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_is_committed(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["vectors", "write", str(tmp_path), "--preset", "quantized"])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'quantized'}\n")
    assert "quantized: matrices in 4 and 8 bits" in result.stderr
    assert {path.name for path in (tmp_path / "quantized").iterdir()} == set(QUANTIZED_FILES)
    for file in QUANTIZED_FILES:
        assert (tmp_path / "quantized" / file).read_bytes() == (FOLDER / file).read_bytes(), file
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_BYTES

    (tmp_path / "quantized" / "thesis.txt").write_text("three years", encoding="utf-8")
    result = CliRunner().invoke(main, ["vectors", "write", str(tmp_path), "--preset", "quantized"])
    assert result.exit_code == 2
    assert "quantized: holds 'thesis.txt', which is not part of a vector" in result.stderr


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "int8"])
def test_bitsandbytes_packs_the_same_bits(bnb: Any, name: str) -> None:
    import torch

    kind, block_size = MATRICES[name]
    kind, _, is_double = kind.partition("-")
    parameter = bnb.nn.Params4bit(
        torch.from_numpy(tensors("original")[f"{name}.weight"]),
        requires_grad=False,
        blocksize=block_size,
        quant_type=kind,
        compress_statistics=bool(is_double),
    )
    layer = bnb.nn.Linear4bit(1, 1, bias=False)
    layer.weight = parameter.to("cpu")
    theirs = {end: tensor.numpy() for end, tensor in layer.state_dict().items()}
    ours = packed_matrix(name)
    assert ours.pop("state") == json.loads(theirs[STATE + kind].tobytes())
    assert ours.keys() == theirs.keys()
    for end in ours.keys() - {STATE + kind}:
        assert (ours[end].dtype, ours[end].shape) == (theirs[end].dtype, theirs[end].shape), end
        if end == "weight.nested_quant_map":  # [N27]
            assert (abs(ours[end] - theirs[end]) <= np.spacing(abs(ours[end]))).all()
        else:
            assert np.array_equal(ours[end], theirs[end]), end

    state = layer.weight.quant_state
    state.shape = torch.Size((1, state.shape.numel()))  # one row [N31]
    if is_double:
        state.state2.code = torch.from_numpy(ours["weight.nested_quant_map"])
    found = bnb.functional.dequantize_4bit(layer.weight.data, state).numpy().reshape(-1)
    expected = tensors("expected")[f"{name}.weight"].reshape(-1)
    assert np.array_equal(to_bits(found + np.float32(0)), to_bits(expected + np.float32(0)))  # [N29]


def test_bitsandbytes_computes_the_same_in_8_bits(bnb: Any) -> None:
    import torch

    layer = bnb.nn.Linear8bitLt(1, 1, bias=False, has_fp16_weights=False, threshold=6.0)
    weight = torch.from_numpy(tensors("original")["int8.weight"])
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    theirs = {end: tensor.numpy() for end, tensor in layer.state_dict().items()}
    ours = packed_matrix("int8")
    assert ours.pop("state") is None
    assert ours.keys() == theirs.keys()
    for end, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[end].dtype, theirs[end].shape), end
        assert np.array_equal(tensor, theirs[end]), end
    found = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB).numpy()
    assert np.array_equal(to_bits(found), to_bits(tensors("expected")["int8.weight"]))
    output = layer.eval()(torch.from_numpy(tensors("original")["int8.input"])).detach().numpy()
    assert np.allclose(output, tensors("expected")["int8.output"], rtol=1e-6, atol=1e-6 * abs(output).max())


# --- what it detects -------------------------------------------------------------------------------------------------


def packed_by_the_rules(
    name: str,
    whole: str = "multiply",
    short: str = "divide",
    side: str = "left",
    least: float = 1e-38,
    flush: bool = False,
    high_first: bool = True,
    pad: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize by the rules of 18.2, written number by number; the arguments break them."""
    code, block_size = golden.CODES[MATRICES[name][0].partition("-")[0]], MATRICES[name][1]
    order = sorted(range(16), key=lambda i: (code[i], i))
    midpoints = [(code[i] + code[j]) / np.float32(2) for i, j in itertools.pairwise(order)]
    numbers, one = tensors("original")[f"{name}.weight"].reshape(-1), np.float32(1)
    tiny = np.finfo(np.float32).tiny
    if flush:
        numbers = np.where(abs(numbers) < tiny, np.float32(0), numbers)
    chosen, scales = [], []
    for start in range(0, numbers.size, block_size):
        block = numbers[start : start + block_size]
        absmax = abs(block).max()
        limited = max(absmax, np.float32(least))
        is_whole = block.size == block_size
        scales.append(absmax if is_whole else limited)
        inverse = one / limited
        if flush and inverse < tiny:
            inverse = np.float32(0)
        scaled = block * inverse if (whole if is_whole else short) == "multiply" else block / limited
        chosen += [order[i] for i in np.searchsorted(midpoints, scaled, side=side)]  # type: ignore[call-overload]
    if len(chosen) % 2:
        chosen.append(order[int(np.searchsorted(midpoints, 0))] if pad else 0)
    first, second = np.array(chosen[::2], np.uint8), np.array(chosen[1::2], np.uint8)
    return (first << 4 | second if high_first else second << 4 | first)[:, None], np.array(scales, np.float32)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"whole": "divide"},
        {"short": "multiply"},
        {"side": "right"},
        {"least": 1e-45},
        {"flush": True},
        {"high_first": False},
        {"pad": False},
    ],
    ids=lambda broken: "-".join(broken) or "right",
)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_the_vector_detects_a_broken_rule(name: str, broken: dict[str, Any]) -> None:
    packed, absmax = packed_by_the_rules(name, **broken)
    expected = packed_matrix(name)
    is_equal = np.array_equal(packed, expected["weight"]) and np.array_equal(absmax, expected["weight.absmax"])
    if broken == {"pad": False} and name == "fp4":
        assert is_equal  # its zero is 0000
    else:
        assert is_equal == (not broken)


def test_double_quantization_follows_the_table_of_cells() -> None:
    """The nearest code itself is another one for some of the scales."""
    expected = packed_matrix("nf4-double")
    absmax = packed_by_the_rules("nf4-double")[1]
    code, offset = expected["weight.nested_quant_map"], np.float32(expected["state"]["nested_offset"])
    assert offset == np.float32(absmax.mean(dtype=np.float64))
    scaled = []
    for start in range(0, absmax.size, 256):
        block = absmax[start : start + 256] - offset
        scaled.append(np.clip(block * (np.float32(1) / abs(block).max()), -1, 1))
    cells = np.floor((np.concatenate(scaled) + np.float32(1)) * np.float32(32767.5) + np.float32(0.5))
    assert np.array_equal(expected["weight.absmax"], [abs(cell / 32767.5 - 1 - code).argmin() for cell in cells])
    assert len(np.unique(expected["weight.absmax"])) > 40
    assert expected["weight.nested_absmax"].shape == (2,)


# --- C and C++ -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compile the C of chapter 18."""
    if C_COMPILER is None:
        pytest.skip("gcc is not installed: it compiles the C of spec/18-quantization.md")
    folder = tmp_path_factory.mktemp("decoder")
    listings = re.findall(r"^```c$(.*?)^```$", (SPEC / "18-quantization.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(listings) == 2
    (folder / "decoder.c").write_text("".join(listings), encoding="utf-8")
    options = ["-std=c99", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fPIC", "-shared"]
    command = [C_COMPILER, *options, str(folder / "decoder.c"), "-o", str(folder / "decoder.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "decoder.so"))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "int8"])
def test_the_c_of_the_chapter_decodes_the_vector(decoder: ctypes.CDLL, name: str) -> None:
    matrix, size = packed_matrix(name), ctypes.c_size_t
    state, absmax = matrix["state"], matrix["weight.absmax"]
    if "nested_offset" in state:
        codes, absmax = absmax, np.empty(absmax.size, np.float32)
        nested, code = matrix["weight.nested_absmax"], matrix["weight.nested_quant_map"]
        block, offset = size(state["nested_blocksize"]), ctypes.c_float(state["nested_offset"])
        parts = pointer(codes), pointer(nested), pointer(code), offset, block, size(codes.size)
        decoder.dequantize_absmax(*parts, pointer(absmax))
    numbers = np.empty(state["shape"], np.float32)
    arrays = pointer(matrix["weight"]), pointer(absmax), pointer(matrix["weight.quant_map"])
    decoder.dequantize_4bit(*arrays, size(state["blocksize"]), size(numbers.size), pointer(numbers))
    assert np.array_equal(to_bits(numbers), to_bits(tensors("expected")[f"{name}.weight"]))


@pytest.fixture(scope="module")
def dequantize(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the example."""
    if COMPILER is None:
        pytest.skip("g++ is not installed: it compiles the example of spec/vectors")
    program = tmp_path_factory.mktemp("example") / "dequantize"
    source = SPEC / "vectors" / "example" / "dequantize.cpp"
    options = ["-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    command = [COMPILER, *options, str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.slow
def test_the_example_decodes_the_vector(dequantize: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        command = [str(dequantize), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout, done.stderr

    sizes = {name: tensors("original")[f"{name}.weight"].size for name in MATRICES}
    passes = {name: f"pass {name}: {size} numbers\n" for name, size in sizes.items()}
    assert run(FOLDER) == (0, "".join(passes.values()), "")
    assert run() == (2, "", "usage: dequantize FOLDER\n")
    assert run(tmp_path) == (2, "", f"Error: {tmp_path}/packed.safetensors: cannot be opened\n")

    shutil.copytree(FOLDER, tmp_path / "changed")
    for changed in ("nf4.weight", "fp4.weight.absmax", "nf4-double.weight.nested_absmax", "int8.SCB"):
        packed = dict(tensors("packed"))
        packed[changed] = packed[changed][::-1].copy()
        save_file(packed, tmp_path / "changed" / "packed.safetensors")
        code, output, _ = run(tmp_path / "changed")
        assert code == 1
        failed = [line.split()[1] for line in output.splitlines() if line.startswith("FAIL")]
        assert failed == [changed.partition(".")[0] + ":"]
    del packed["int8.SCB"]
    save_file(packed, tmp_path / "changed" / "packed.safetensors")
    assert run(tmp_path / "changed")[::2] == (2, "Error: the file has no tensor int8.SCB\n")
