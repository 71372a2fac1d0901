"""`verify` on quantized weights: right implementations pass, wrong bits and int8 products are named."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_parameters import MARKS, backend_on_cpu, rounded
from click.testing import CliRunner

from pegasusx_ref import DEMO_CHECKPOINT, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.backend.quantized import KINDS, QuantizedMatrix
from pegasusx_ref.cli import main
from pegasusx_ref.cli.candidates import load_quantized
from pegasusx_ref.golden.quantization import dequantize_absmax
from pegasusx_ref.model.quantization import Quantization, quantized
from pegasusx_ref.model.weights import random_weights
from pegasusx_ref.verification import Report, from_backend, from_transformers, verify
from pegasusx_ref.verification.diagnosis.error_sizes import UNQUANTIZED
from pegasusx_ref.verification.diagnosis.quantization_bugs import INT8, matrix_bugs

pytestmark = pytest.mark.unwatched

# fc2 has eight blocks a row; its scales have two blocks of double quantization.
CONFIG = PegasusXConfig.preset(
    "tiny", d_model=64, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=512, decoder_ffn_dim=128, init_std=0.2
)
FC2, Q = "encoder.layers.0.fc2.weight", "encoder.layers.0.self_attn.q_proj.weight"
OUTPUT = {FC2: "encoder.layers.0.tokens.fc2", Q: "encoder.layers.0.self_attn.tokens.q_proj"}
TABLE = "shared.weight"
_rng = np.random.default_rng(18)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (2, 29)),
    "attention_mask": np.arange(29) < np.array([[29], [17]]),
    "decoder_input_ids": np.c_[np.zeros((2, 1), dtype=np.int64), _rng.integers(106, 256, (2, 9))],
}
SWAPPED = "the two numbers of a byte are swapped: the first one is in the high four bits"
HIDDEN_BY_BFLOAT16 = (
    "the scales of the scales (nested absmax) are those of the next block",
    "the codes are divided by 128, not 127",
)

Tensors = dict[str, Any]


@cache
def tensors_of(kind: str, embedding: bool = False) -> Tensors:
    """Quantize random weights, which are exact in bfloat16: so are those that stay."""
    weights = {name: rounded(weight, "bfloat16") for name, weight in random_weights(CONFIG, 18, head=True).items()}
    requested = Quantization(kind, embedding)
    return {name: quantized(name, w, requested.kind_for(name, head=True), "here") for name, w in weights.items()}


def model_of(tensors: Tensors, backend: str = "golden", dtype: str = "float64") -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration(CONFIG, tensors, backend_on_cpu(backend, dtype))


def report_on(kind: str, wrong: Tensors, embedding: bool = False, arithmetic: str = "float32") -> Report:
    """Verify a candidate with other tensors than the quantized reference has."""
    tensors = tensors_of(kind, embedding)
    dense = {name: x.dequantized() if isinstance(x, QuantizedMatrix) else x for name, x in tensors.items()}
    candidate = from_backend(model_of(dense | wrong, "numpy" if arithmetic != "bfloat16" else "torch", arithmetic))
    return verify(model_of(tensors), candidate, INPUTS, arithmetic)


def mistakes(report: Report) -> list[str]:
    return [diagnosis.mistake for diagnosis in report.diagnoses]


# --- right implementations -------------------------------------------------------------------------------------------

RUNS = [
    pytest.param(backend, dtype, id=f"{backend}-{dtype}", marks=MARKS[backend])
    for backend, dtype in (
        ("numpy", "float64"),
        ("numpy", "float32"),
        ("torch", "float32"),
        ("torch", "bfloat16"),
        ("cupy", "float32"),
    )
]


@pytest.mark.parametrize("embedding", [False, True], ids=["", "embedding"])
@pytest.mark.parametrize(("backend", "dtype"), RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_our_backends_pass(kind: str, backend: str, dtype: str, embedding: bool) -> None:
    tensors = tensors_of(kind, embedding)
    report = verify(model_of(tensors), from_backend(model_of(tensors, backend, dtype)), INPUTS, dtype)
    assert report.passed, report.first_failure


@pytest.mark.parametrize("backend", [pytest.param("numpy"), pytest.param("torch", marks=MARKS["torch"])])
def test_the_reference_may_be_on_any_backend(backend: str) -> None:
    tensors = tensors_of("nf4-double")
    reference = model_of(tensors, backend, "float32")
    assert verify(reference, from_backend(model_of(tensors)), INPUTS, "float64").passed
    wrong = model_of(tensors | {FC2: in_swapped_order(tensors[FC2])})
    assert mistakes(verify(reference, from_backend(wrong), INPUTS, "float64")) == [SWAPPED]


@pytest.fixture
def load(transformers: Any, bnb: Any) -> Callable[[str], Any]:
    """Return a function that loads a quantized model of transformers, with exact positions, to compute in float32."""
    import torch
    from faults import exact_positions

    pytest.importorskip("accelerate", reason="accelerate is not installed")
    load = partial(
        transformers.PegasusXForConditionalGeneration.from_pretrained, dtype=torch.float32, attn_implementation="eager"
    )

    def loaded(kind: str) -> Any:
        theirs = load_quantized(load, model_of(tensors_of(kind)), torch.float32)
        for side in ("encoder", "decoder"):
            exact_positions(side)(theirs)
        return theirs

    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_with_bitsandbytes(kind: str, load: Callable[[str], Any]) -> None:
    """4 bits pass; int8 fails in every linear layer, because it quantizes the activations too, and only there."""
    report = verify(model_of(tensors_of(kind)), from_transformers(load(kind)), INPUTS)
    if kind != "int8":
        assert report.passed, report.first_failure
        return
    assert report.first_failure is not None
    assert report.first_failure.name == OUTPUT[Q]
    assert mistakes(report) == [INT8] == ["products of int8 activations (LLM.int8)"]
    failed = {check.operation for check in report.table if check.verdict == "fail"}
    assert failed == {"linear"}


# --- faults: each candidate reads the bits of one matrix wrongly -----------------------------------------------------


def codes_of(matrix: QuantizedMatrix) -> np.ndarray:
    """Return a number from 0 to 15 for each number of the matrix."""
    return np.stack([matrix.codes >> 4, matrix.codes & 15], axis=1).reshape(matrix.shape)


def with_scales(matrix: QuantizedMatrix, absmax: np.ndarray) -> np.ndarray:
    found: np.ndarray = replace(matrix, absmax=absmax.astype(np.float32)).dequantized()
    return found


def with_numbers(matrix: QuantizedMatrix, numbers: np.ndarray) -> np.ndarray:
    """Multiply other numbers of the matrix's shape with its scales."""
    scales = np.repeat(matrix.absmax, matrix.block_size).reshape(matrix.shape)
    found: np.ndarray = (numbers * scales).astype(np.float32)
    return found


def without_offset(matrix: QuantizedMatrix) -> np.ndarray:
    nested = matrix.nested
    assert nested is not None
    return with_scales(matrix, dequantize_absmax(nested.codes, nested.absmax, np.float32(0), nested.code))


def of_next_nested_block(matrix: QuantizedMatrix) -> np.ndarray:
    nested = matrix.nested
    assert nested is not None
    assert len(nested.absmax) == 2
    return with_scales(matrix, dequantize_absmax(nested.codes, nested.absmax[::-1], nested.offset, nested.code))


def in_swapped_order(matrix: QuantizedMatrix) -> np.ndarray:
    pairs: np.ndarray = matrix.dequantized().reshape(-1, 2)  # blocks begin at even places: a swap stays inside a block
    return pairs[:, ::-1].reshape(matrix.shape)


FP4_NUMBERS = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4])
FAULTS: dict[str, tuple[str, Callable[[QuantizedMatrix], np.ndarray]]] = {
    "the scales (absmax) are those of the next block": ("nf4", lambda m: with_scales(m, np.roll(m.absmax, -1))),
    "the scales (absmax) are those of the next row": ("int8", lambda m: with_scales(m, np.roll(m.absmax, -1))),
    "the scales (absmax) are of rows: each row has that of its first block": (
        "nf4",
        lambda m: with_scales(m, np.repeat(m.absmax.reshape(m.shape[0], -1)[:, 0], 8)),
    ),
    SWAPPED: ("nf4", in_swapped_order),
    "the code is FP4, not NF4": ("nf4", lambda m: with_numbers(m, np.r_[FP4_NUMBERS, -FP4_NUMBERS][codes_of(m)])),
    "the code is (n - 8) / 7, a uniform int4, not NF4": (
        "nf4",
        lambda m: with_numbers(m, (codes_of(m).astype(float) - 8) / 7),
    ),
    "the code is n / 7.5 - 1, a uniform int4, not FP4": (
        "fp4",
        lambda m: with_numbers(m, codes_of(m) / 7.5 - 1),
    ),
    "the offset of the scales (nested offset) is missing": ("nf4-double", without_offset),
    "the scales of the scales (nested absmax) are those of the next block": ("nf4-double", of_next_nested_block),
    "the codes are divided by 128, not 127": (
        "int8",
        lambda m: (m.codes / 128 * m.absmax[:, None]).astype(np.float32),
    ),
}


@pytest.mark.parametrize("arithmetic", ["float32", pytest.param("bfloat16", marks=MARKS["torch"])])
@pytest.mark.parametrize("bug", FAULTS)
def test_a_fault_is_named(bug: str, arithmetic: str) -> None:
    kind, dequantize = FAULTS[bug]
    report = report_on(kind, {FC2: dequantize(tensors_of(kind)[FC2])}, arithmetic=arithmetic)
    if arithmetic == "bfloat16" and bug in HIDDEN_BY_BFLOAT16:
        assert report.passed
        return
    assert report.first_failure is not None
    assert report.first_failure.name == OUTPUT[FC2]
    assert mistakes(report)[:1] == [bug]


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_not_quantized_is_named(kind: str) -> None:
    original = {name: rounded(w, "bfloat16") for name, w in random_weights(CONFIG, 18, head=True).items()}
    name = kind.removesuffix("-double")
    for matrix in (FC2, Q):
        report = report_on(kind, {matrix: original[matrix]})
        assert report.first_failure is not None
        assert report.first_failure.name == OUTPUT[matrix]
        assert mistakes(report) == [UNQUANTIZED.format(name)]
    report = report_on(kind, {TABLE: original[TABLE]}, embedding=True)
    assert mistakes(report) == [UNQUANTIZED.format(name)]


@pytest.mark.parametrize(("kind", "other"), [("nf4", "fp4"), ("int8", "nf4"), ("int8", "fp4")])
def test_a_coarser_format_is_not_taken_for_an_unquantized_weight(kind: str, other: str) -> None:
    report = report_on(kind, {FC2: tensors_of(other)[FC2]})
    assert not report.passed
    assert not any("quantized" in mistake for mistake in mistakes(report))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4-double", "fp4", "int8"])
def test_each_bug_is_told_from_all_others(kind: str) -> None:
    for name in (FC2, Q):
        matrix = tensors_of(kind)[name]
        matrices = {bug: variant() for bug, variant in matrix_bugs(matrix).items()}
        visible = {bug: wrong for bug, wrong in matrices.items() if (wrong != matrix.dequantized()).any()}
        assert len(visible) >= (4 if kind == "int8" else 12)
        for wrong in visible.values():
            alike = {bug for bug, other in visible.items() if np.array_equal(wrong, other)}
            assert set(mistakes(report_on(kind, {name: wrong}))) == alike


def test_a_fault_of_the_embedding_is_named() -> None:
    report = report_on("nf4", {TABLE: in_swapped_order(tensors_of("nf4", True)[TABLE])}, embedding=True)
    assert report.first_failure is not None
    assert report.first_failure.name == "encoder.embed_tokens"
    assert mistakes(report) == [SWAPPED]


def test_another_layer_s_quantized_weights_are_named() -> None:
    key = "encoder.layers.0.self_attn.k_proj.weight"
    report = report_on("nf4", {Q: tensors_of("nf4")[key]})
    assert mistakes(report) == ["the weights of k_proj are used"]


# --- the command line ------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(main, ["verify", "--tokens", "40", "--no-progress", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_verify_quantizes_reference_and_candidate(tmp_path: Path) -> None:
    assert run("--against", "numpy", "--quantization", "nf4-double", "--quantize-embedding").exit_code == 0
    model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, quantization="int8")
    model.save_pretrained(tmp_path)
    assert run("--against", "numpy", "--model", tmp_path).exit_code == 0
    result = run("--against", "numpy", "--model", tmp_path, "--quantization", "nf4")
    assert result.exit_code == 2
    assert "is already quantized as int8, not nf4" in result.stderr


@pytest.mark.slow
def test_verify_quantizes_transformers(transformers: Any, bnb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without quantization, only the positions are wrong."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    result = run("--quantization", "nf4-double", "--json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert finding["diagnoses"][0]["mistake"] == "positions are computed in low precision"
    assert set(finding["tensors"]) <= {"encoder.embeddings", "decoder.embeddings"}
    result = run("--quantization", "nf4", "--quantize-embedding")
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: --against transformers does not read a quantized embedding: omit --quantize-embedding\n",
    )
    monkeypatch.setitem(sys.modules, "accelerate", None)
    result = run("--quantization", "nf4")
    assert result.exit_code == 2
    assert "needs accelerate for quantized weights: pip install bitsandbytes accelerate" in result.stderr
