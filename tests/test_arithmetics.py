"""Arithmetics: each passes as itself, is told apart from finer ones, and can be composed."""

from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from padded_batch import INPUTS
from simulated_arithmetic import BFLOAT16, PRODUCTS, SimulatedBackend, exact
from strategies import batches, configs, seeds

from pegasusx_ref import InputError, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.verification import Report, from_backend, verify
from pegasusx_ref.verification.checking.arithmetics import ALIASES, ARITHMETICS, get_arithmetic

pytestmark = pytest.mark.unwatched

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2, d_model=64)
STORED = {name: ARITHMETICS[name].stored for name in PRODUCTS}


def simulated(
    name: str, config: PegasusXConfig, seed: int, inputs: Any, arithmetic: str | None = None, **options: Any
) -> Report:
    """Verify a run in a simulated arithmetic."""
    stored = "float32" if "of_parameters" in options else STORED[name]
    golden = reference(config, seed, stored)
    candidate = PegasusXForConditionalGeneration(config, golden.state_dict(), SimulatedBackend(name, **options))
    with np.errstate(all="ignore"):
        return verify(golden, from_backend(candidate), inputs, arithmetic or name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
@settings(max_examples=15)
@given(st.data())
def test_a_run_passes_as_its_own_arithmetic(name: str, data: st.DataObject) -> None:
    config = data.draw(configs())
    report = simulated(name, config, data.draw(seeds), data.draw(batches(config))._asdict())
    assert [check for check in report.table if check.verdict == "fail"] == []


@pytest.mark.parametrize("name", ["tf32", "BF16_BF16_F32", "BF16_BF16_BF16", "F16_F16_F32"])
def test_where_a_finer_arithmetic_fails_the_report_names_those_that_pass(name: str) -> None:
    report = simulated(name, CONFIG, 0, INPUTS, "float32")
    assert not report.passed
    assert name in report.passes_as
    # F16_F16_F32 rounds as tf32 does, but for small numbers.
    assert report.passes_as[0] == ("tf32" if name == "F16_F16_F32" else name)
    assert simulated(name, CONFIG, 0, INPUTS, name).passes_as == []


def test_what_a_report_names_passes() -> None:
    """Results in bfloat16 whose sums are in bfloat16 too are no arithmetic of the table."""
    report = simulated("bfloat16", CONFIG, 0, INPUTS, "bfloat16", products="BF16_BF16_BF16")
    assert not report.passed
    assert report.passes_as == []


def test_a_known_difference_does_not_hide_the_arithmetic() -> None:
    golden = reference(CONFIG, 0, "bfloat16")
    candidate = PegasusXForConditionalGeneration(CONFIG, golden.state_dict(), SimulatedBackend("bfloat16"))
    tensors = dict(from_backend(candidate)(INPUTS))
    tensors["lm_head"] = tensors["lm_head"] + np.float32(0.5)
    for known, expected in (((), None), (["lm_head: shifted, error < 1"], "bfloat16")):
        names = verify(golden, tensors, INPUTS, "float32", known=known).passes_as
        assert (names[0] if names else None) == expected


def test_a_single_fault_is_no_other_arithmetic() -> None:
    golden = reference(CONFIG, 0, "float32")
    tensors = dict(from_backend(golden)(INPUTS))
    tensors["lm_head"] = tensors["lm_head"] * 1.001
    report = verify(golden, tensors, INPUTS, "float32")
    assert (report.passed, report.passes_as) == (False, [])


def test_a_softmax_in_bfloat16_passes_as_such() -> None:
    report = simulated("bfloat16", CONFIG, 0, INPUTS, "bfloat16, softmax=bfloat16", of_softmax=BFLOAT16)
    assert report.passed
    report = simulated("float32", CONFIG, 0, INPUTS, "float32, softmax=bfloat16", of_softmax=BFLOAT16)
    assert report.passed
    report = simulated("float32", CONFIG, 0, INPUTS, "float32", of_softmax=BFLOAT16)
    assert report.first_failure is not None
    assert report.first_failure.operation == "softmax"


def test_parameters_may_be_stored_in_float32() -> None:
    mixed = "bfloat16, parameters=float32"
    report = simulated("bfloat16", CONFIG, 0, INPUTS, mixed, of_parameters=BFLOAT16)
    assert report.passed
    report = simulated("BF16_BF16_F32", CONFIG, 0, INPUTS, "float32", of_parameters=exact)
    assert not report.passed
    assert get_arithmetic(mixed).stored == "float32"
    assert get_arithmetic("bfloat16").stored == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_residual_stream_can_be_held_to_float32(dtype: str) -> None:
    """As in our backends: in the dtype itself it passes otherwise."""
    strict = f"{dtype}, residual=float32"
    report = simulated(dtype, CONFIG, 0, INPUTS, strict)
    assert report.first_failure is not None
    assert report.first_failure.name == "encoder.embeddings"  # a scale of 1 leaves rows of the table as they are
    wrong = {check.operation for check in report.table if check.verdict == "fail"}
    assert wrong <= {"embed_tokens", "add_positions", "add", "linear"}
    assert simulated(dtype, CONFIG, 0, INPUTS, dtype).passed


def test_our_half_precision_has_a_residual_stream_in_float32() -> None:
    """In bfloat16 a CPU's products round it."""
    pytest.importorskip("torch")
    tensors = from_backend(random_model(CONFIG, 0, "torch", "float16"))(INPUTS)
    golden = reference(CONFIG, 0, "float16")
    assert verify(golden, tensors, INPUTS, "float16, residual=float32").passed


def test_other_names_stand_for_the_same_arithmetic() -> None:
    for name, same in ALIASES.items():
        assert get_arithmetic(name)._replace(name="") == ARITHMETICS[same]._replace(name="")
    tf32 = get_arithmetic("tf32")
    assert get_arithmetic(tf32) is tf32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8", "arithmetic='int8' is not known: pass one of float64, float32, tf32"),
        (None, "arithmetic=None is not known"),
        (
            "float32, softmax=int8",
            "'softmax=int8' is not known: pass softmax=, parameters= or residual= with one of float64",
        ),
        ("float32, sums=float16", "'sums=float16' is not known"),
        ("float32,", "'' is not known"),
    ],
    ids=str,
)
def test_unknown_names_are_errors(name: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_arithmetic(name)
