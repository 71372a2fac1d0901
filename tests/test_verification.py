"""`verify`: no false alarm on correct implementations, and faults are flagged at the right tensor."""

from types import ModuleType

import numpy as np
import pytest
from backend_parameters import EVERYTHING, random_model, reference
from hf_reference import eager_hf_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from other_orders import ByThrees, InAnotherOrder, Reordered
from padded_batch import INPUTS
from strategies import batches, configs, seeds

from pegasusx_ref import TRACE_POINTS, InputError, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.tracing.trace_points import general
from pegasusx_ref.verification import Report, from_backend, from_transformers, verify, verify_generation

pytestmark = pytest.mark.unwatched

POSITIONS = {"encoder.embeddings", "decoder.embeddings"}  # transformers computes them in the model's dtype
CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)


def failed(report: Report) -> list[str]:
    return [check.name for check in report.table if check.verdict == "fail"]


# --- no false alarm --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@settings(max_examples=40)
@given(st.data())
def test_stock_transformers_passes_but_for_its_positions(
    transformers: ModuleType, dtype: str, data: st.DataObject
) -> None:
    config = data.draw(configs())
    model = reference(config, data.draw(seeds), dtype)
    batch = data.draw(batches(config))
    report = verify(model, from_transformers(eager_hf_reference(transformers, model, dtype)), batch._asdict(), dtype)
    assert set(failed(report)) <= (set() if dtype == "float64" else POSITIONS)
    assert report.unknown == []


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@settings(max_examples=25)
@given(st.data())
def test_our_backends_pass(backend: str, dtype: str, data: st.DataObject) -> None:
    config, seed = data.draw(configs()), data.draw(seeds)
    candidate = from_backend(random_model(config, seed, backend, dtype))
    report = verify(reference(config, seed, dtype), candidate, data.draw(batches(config))._asdict(), dtype)
    assert failed(report) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Reordered, ByThrees])
@settings(max_examples=25)
@given(st.data())
def test_sums_in_another_order_pass(kind: type[Reordered], data: st.DataObject) -> None:
    config, seed = data.draw(configs()), data.draw(seeds)
    model = random_model(config, seed, "numpy", "float32")
    other = PegasusXForConditionalGeneration(config, model.state_dict(), InAnotherOrder(kind))
    batch = data.draw(batches(config))._asdict()
    report = verify(reference(config, seed, "float32"), from_backend(other), batch, "float32")
    assert failed(report) == []


class BiasFirst(GoldenBackend):
    """The golden functions, except that sums of products start at the bias, as in some libraries."""

    def linear(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        y = np.zeros((*x.shape[:-1], len(weight)), x.dtype) + (0 if bias is None else bias)
        for i in range(x.shape[-1]):
            y = y + x[..., i, None] * weight[:, i]
        return y

    linear_full_precision = linear


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=25)
@given(st.data())
def test_sums_that_start_at_the_bias_pass(dtype: str, data: st.DataObject) -> None:
    config, seed = data.draw(configs(init_std=0.02)), data.draw(seeds)
    golden = reference(config, seed, dtype)
    weights = golden.state_dict()
    weights |= {name: 50 * x for name, x in weights.items() if name.endswith(("fc1.bias", "fc2.bias"))}
    golden = PegasusXForConditionalGeneration(config, weights, golden.ops)
    other = PegasusXForConditionalGeneration(config, weights, BiasFirst("cpu", dtype))
    report = verify(golden, from_backend(other), data.draw(batches(config))._asdict(), dtype)
    assert failed(report) == []


def test_another_order_changes_the_result() -> None:
    """Otherwise the test above would test nothing."""
    model = random_model(CONFIG, 0, "numpy", "float32")
    other = PegasusXForConditionalGeneration(CONFIG, model.state_dict(), InAnotherOrder(Reordered))
    right, wrong = (from_backend(m)(INPUTS) for m in (model, other))
    changed = {general(name) for name in right if not np.array_equal(right[name], wrong[name])}
    inputs = {"encoder.embed_tokens", "encoder.embeddings", "encoder.embed_global", "decoder.embed_tokens"}
    assert changed == set(TRACE_POINTS) - inputs - {"decoder.embeddings"}


@pytest.mark.slow
@settings(max_examples=25)
@given(st.data())
def test_any_tensors_may_be_missing(data: st.DataObject) -> None:
    """As in a fused implementation; the others are checked with wider tolerances."""
    config, seed = data.draw(configs()), data.draw(seeds)
    inputs = data.draw(batches(config))._asdict()
    tensors = from_backend(random_model(config, seed, "numpy", "float32"))(inputs)
    kept = data.draw(st.sets(st.sampled_from(sorted(tensors)), min_size=1))
    report = verify(reference(config, seed, "float32"), {name: tensors[name] for name in kept}, inputs, "float32")
    assert failed(report) == []
    assert {check.name for check in report.table} == kept


def test_every_trace_point_is_checked(transformers: ModuleType) -> None:
    model = reference(CONFIG, 0, "float64")
    for candidate in (from_backend(model), from_transformers(eager_hf_reference(transformers, model, "float64"))):
        report = verify(model, candidate, INPUTS, "float64")
        assert report.passed
        assert {general(check.name) for check in report.table} == set(TRACE_POINTS)
        assert all(check.is_direct for check in report.table)


# --- single elements and rows; the suite of faults is in test_faults.py ----------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(40))
def test_any_changed_element_is_found(number: int) -> None:
    rng = np.random.default_rng(number)
    model = reference(CONFIG, number, "float32")
    tensors = dict(from_backend(random_model(CONFIG, number, "numpy", "float32"))(INPUTS))
    right = verify(model, tensors, INPUTS, "float32")
    assert right.passed
    check = right.table[rng.integers(len(right.table))]
    tensor = tensors[check.name].copy()
    real = INPUTS["attention_mask"].all(axis=1).nonzero()[0][0]  # the batch row without padding
    index = tuple(int(rng.integers(size)) if axis else int(real) for axis, size in enumerate(tensor.shape))
    tensor[index] += np.float32(1e-3 * max(abs(float(tensor[index])), 1.0))
    tensors[check.name] = tensor
    report = verify(model, tensors, INPUTS, "float32")
    assert report.first_failure is not None
    assert report.first_failure.name == check.name


def test_a_wrong_row_is_found_though_no_element_is_wrong() -> None:
    name = "encoder.layers.1.tokens.fc2"
    model = reference(CONFIG, 0, "float32")
    tensors = dict(from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS))
    failure = verify(model, tensors | {name: tensors[name] + 1}, INPUTS, "float32").failure
    assert failure is not None
    deviation, bound = np.sqrt(failure.estimate.allowed().variance), failure.estimate.allowed().bound
    assert (8 * deviation < bound / 2).all()
    off = failure.estimate.value + 8 * deviation * np.sign(np.random.default_rng(0).standard_normal(deviation.shape))
    found = verify(model, tensors | {name: off}, INPUTS, "float32").first_failure
    assert found is not None
    assert found.name == name
    assert 7.9 < found.rho < 8.1


def test_captured_tensors_are_copies(transformers: ModuleType) -> None:
    import torch

    model = reference(CONFIG, 0, "float64")
    hf_model = eager_hf_reference(transformers, model, "float64")
    for layer in (*hf_model.model.encoder.layers, *hf_model.model.decoder.layers):
        layer.activation_fn = torch.nn.ReLU(inplace=True)  # writes into fc1's result
    assert verify(model, from_transformers(hf_model), INPUTS, "float64").passed


def test_padding_rows_may_hold_anything() -> None:
    model = reference(CONFIG, 0, "float64")
    tensors = {name: array.copy() for name, array in from_backend(model)(INPUTS).items()}
    padding = ~INPUTS["attention_mask"]
    for name, array in tensors.items():
        if TRACE_POINTS[general(name)] == "BTD":
            array[padding] = np.nan
    assert verify(model, tensors, INPUTS, "float64").passed


# --- unusual candidates ----------------------------------------------------------------------------------------------


def test_a_wrong_shape_fails() -> None:
    model = reference(CONFIG, 0, "float64")
    tensors = dict(from_backend(model)(INPUTS)) | {"lm_head": np.zeros((2, 6, 7))}
    found = verify(model, tensors, INPUTS, "float64").first_failure
    assert found is not None
    assert (found.name, found.note) == ("lm_head", "shape (2, 6, 7) where (2, 6, 256) is expected")


def test_logits_of_the_last_position_alone_are_compared() -> None:
    model = reference(CONFIG, 0, "float64")
    tensors = dict(from_backend(model)(INPUTS))
    last = tensors["lm_head"][:, -1:].copy()
    assert verify(model, tensors | {"lm_head": last}, INPUTS, "float64").passed
    last[0, 0, 7] += 1
    report = verify(model, tensors | {"lm_head": last}, INPUTS, "float64")
    assert [(check.name, check.at) for check in report.table if check.verdict == "fail"] == [("lm_head", (0, 5, 7))]
    np.testing.assert_array_equal(np.argwhere(report.rows["lm_head"].is_wrong), [[0, 5]])


def test_nan_fails() -> None:
    model = reference(CONFIG, 0, "float64")
    tensors = {name: array.copy() for name, array in from_backend(model)(INPUTS).items()}
    tensors["decoder.layers.0.fc1"][0, 0, 0] = np.nan
    report = verify(model, tensors, INPUTS, "float64")
    assert failed(report) == ["decoder.layers.0.fc1"]
    assert report.table[-1].verdict == "pass"


def test_wrong_arguments_are_errors() -> None:
    for wrong in ("a folder", None):
        with pytest.raises(InputError, match=r"the reference is a (str|NoneType): pass a PegasusXForConditional"):
            verify(wrong, {}, INPUTS)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"the reference is a (str|NoneType): pass a PegasusXForConditional"):
            verify_generation(wrong, INPUTS, [])  # type: ignore[arg-type]
    model = reference(CONFIG, 0, "float64")
    with pytest.raises(InputError, match="arithmetic='int8' is not known: pass one of float64, float32"):
        verify(model, {}, INPUTS, "int8")
    with pytest.raises(InputError, match="decoder_input_ids is missing: a run takes"):
        verify(model, {}, {"input_ids": [[7]]})
    with pytest.raises(
        InputError, match="inputs have labels: a run takes input_ids, decoder_input_ids and their masks"
    ):
        verify(model, {}, {"input_ids": [[7]], "labels": [[7]]})
    with pytest.raises(InputError, match=r"attention_mask has shape \(1, 2\): expected \(1, 1\)"):
        verify(model, {}, {"input_ids": [[7]], "attention_mask": [[1, 1]], "decoder_input_ids": [[0]]})
    with pytest.raises(InputError, match=r"no tensor with a trace point's name: it has 'logits'"):
        verify(model, {"logits": np.zeros((2, 6, 256))}, INPUTS)


def test_unknown_names_are_listed() -> None:
    model = reference(CONFIG, 0, "float64")
    report = verify(
        model, dict(from_backend(model)(INPUTS)) | {"encoder.layers.7.tokens.fc1": np.zeros(3)}, INPUTS, "float64"
    )
    assert report.unknown == ["encoder.layers.7.tokens.fc1"]
