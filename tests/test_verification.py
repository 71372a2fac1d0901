"""`verify`: no false alarm on correct implementations, and a fault is found where it is."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import EVERYTHING, random_model, rounded
from strategies import batches, configs, seeds
from twins import transformers_twin

from pegasusx_ref import TRACE_POINTS, InputError, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.verification import Report, from_backend, from_transformers, verify
from pegasusx_ref.verification.rows import general
from pegasusx_ref.weights import random_weights

POSITIONS = {"encoder.embeddings", "decoder.embeddings"}  # transformers computes them in the model's dtype
CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (2, 29)),
    "attention_mask": np.arange(29) < np.array([[29], [17]]),
    "decoder_input_ids": _rng.integers(106, 256, (2, 6)),
}


def failed(report: Report) -> list[str]:
    return [check.name for check in report.table if check.verdict == "fail"]


def reference(config: PegasusXConfig, seed: int, dtype: str) -> PegasusXForConditionalGeneration:
    """A model in float64 with weights that are rounded to the candidate's dtype."""
    weights = {name: rounded(w, dtype) for name, w in random_weights(config, seed, head=True).items()}
    golden = random_model(config, seed)
    return PegasusXForConditionalGeneration(config, weights, golden.ops)


def theirs(transformers: ModuleType, model: PegasusXForConditionalGeneration, dtype: str) -> Any:
    import torch

    twin = transformers_twin(transformers, model)
    twin.set_attn_implementation("eager")
    return twin.to(getattr(torch, dtype))


# --- no false alarm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@settings(max_examples=40)
@given(st.data())
def test_stock_transformers_passes_but_for_its_positions(
    transformers: ModuleType, dtype: str, data: st.DataObject
) -> None:
    config = data.draw(configs())
    model = reference(config, data.draw(seeds), dtype)
    batch = data.draw(batches(config))
    report = verify(model, from_transformers(theirs(transformers, model, dtype)), batch._asdict(), dtype)
    assert set(failed(report)) <= (set() if dtype == "float64" else POSITIONS)
    assert report.unknown == []


@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@settings(max_examples=25)
@given(st.data())
def test_our_backends_pass(backend: str, dtype: str, data: st.DataObject) -> None:
    config, seed = data.draw(configs()), data.draw(seeds)
    candidate = from_backend(random_model(config, seed, backend, dtype))
    report = verify(reference(config, seed, dtype), candidate, data.draw(batches(config))._asdict(), dtype)
    assert failed(report) == []


@settings(max_examples=25)
@given(st.data())
def test_what_a_fused_implementation_does_not_show_is_allowed_for(data: st.DataObject) -> None:
    """Any tensors may be missing; the rest is judged by what is known."""
    config, seed = data.draw(configs()), data.draw(seeds)
    inputs = data.draw(batches(config))._asdict()
    tensors = from_backend(random_model(config, seed, "numpy", "float32"))(inputs)
    kept = data.draw(st.sets(st.sampled_from(sorted(tensors)), min_size=1))
    report = verify(reference(config, seed, "float32"), {name: tensors[name] for name in kept}, inputs, "float32")
    assert failed(report) == []
    assert {check.name for check in report.table} == kept


def test_every_trace_point_is_checked(transformers: ModuleType) -> None:
    model = reference(CONFIG, 0, "float64")
    for candidate in (from_backend(model), from_transformers(theirs(transformers, model, "float64"))):
        report = verify(model, candidate, INPUTS, "float64")
        assert report.passed
        assert {general(check.name) for check in report.table} == set(TRACE_POINTS)
        assert all(check.is_direct for check in report.table)


# --- faults ----------------------------------------------------------------------------------------------------------


def _layer_norm_eps(m: Any) -> None:
    m.encoder.layers[1].final_layer_norm.eps = 1e-6


def _scores_1_percent_too_large(m: Any) -> None:
    m.encoder.layers[1].self_attn.scaling *= 1.01


def _cross_scores_a_little_too_large(m: Any) -> None:
    m.decoder.layers[0].encoder_attn.scaling *= 1.0001


def _not_staggered(m: Any) -> None:
    m.encoder.layers[1].stagger_blocks_this_layer = False


def _staggered_on_an_even_layer(m: Any) -> None:
    m.encoder.layers[0].stagger_blocks_this_layer = True


def _another_activation(m: Any) -> None:
    import torch

    m.encoder.layers[0].activation_fn = torch.nn.GELU()


def _queries_and_keys_swapped(m: Any) -> None:
    attention = m.decoder.layers[1].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj


def _globals_share_the_layer_norm(m: Any) -> None:
    m.encoder.layers[0].global_self_attn_layer_norm = m.encoder.layers[0].self_attn_layer_norm


def _no_embedding_scale(m: Any) -> None:
    m.encoder.embed_tokens.embed_scale = 1.0


def _no_final_layer_norm(m: Any) -> None:
    import torch

    m.encoder.layer_norm = torch.nn.Identity()


def _one_bias_slightly_off(m: Any) -> None:
    m.decoder.layers[0].fc2.bias.data[3] += 1e-5


def _one_weight_off(m: Any) -> None:
    m.encoder.layers[1].self_attn.out_proj.weight.data[5, 7] += 1e-3


# A fault, the tensor where it must be seen first, and in what it is seen.
FAULTS: list[tuple[Callable[[Any], None], str, tuple[str, ...]]] = [
    (_layer_norm_eps, "encoder.layers.1.tokens.final_layer_norm", ("float64", "float32")),
    (_scores_1_percent_too_large, "encoder.layers.1.self_attn.local.0.scores", ("float64", "float32", "bfloat16")),
    (_cross_scores_a_little_too_large, "decoder.layers.0.encoder_attn.scores", ("float64", "float32")),
    (_not_staggered, "encoder.layers.1.self_attn.local.0.scores", ("float64", "float32", "bfloat16")),
    (_staggered_on_an_even_layer, "encoder.layers.0.self_attn.local.0.scores", ("float64", "float32", "bfloat16")),
    (_another_activation, "encoder.layers.0.tokens.activation", ("float64", "float32", "bfloat16")),
    (_queries_and_keys_swapped, "decoder.layers.1.self_attn.q_proj", ("float64", "float32", "bfloat16")),
    (
        _globals_share_the_layer_norm,
        "encoder.layers.0.globals.self_attn_layer_norm",
        ("float64", "float32", "bfloat16"),
    ),
    (_no_embedding_scale, "encoder.embed_tokens", ("float64", "float32", "bfloat16")),
    (_no_final_layer_norm, "encoder.layer_norm", ("float64", "float32", "bfloat16")),
    (_one_bias_slightly_off, "decoder.layers.0.fc2", ("float64", "float32")),
    (_one_weight_off, "encoder.layers.1.self_attn.tokens.out_proj", ("float64", "float32", "bfloat16")),
]

MISTAKES: dict[Callable[[Any], None], str] = {
    _layer_norm_eps: "LayerNorm's eps is 1e-06, not 1e-05",
    _another_activation: "the activation is gelu, not relu",
    _queries_and_keys_swapped: "the weights of k_proj are used",
    _globals_share_the_layer_norm: "the weights of self_attn_layer_norm are used",
    _no_embedding_scale: "the embedding scale is missing",
    _no_final_layer_norm: "LayerNorm is missing",
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("break_it", "where", "seen_in"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_fault_is_flagged_where_it_is(
    transformers: ModuleType, break_it: Callable[[Any], None], where: str, seen_in: tuple[str, ...], dtype: str
) -> None:
    model = reference(CONFIG, 0, dtype)
    twin = theirs(transformers, model, dtype)
    break_it(twin.model)
    report = verify(model, from_transformers(twin), INPUTS, dtype)
    others = [name for name in failed(report) if dtype == "float64" or name not in POSITIONS]
    if dtype in seen_in:
        assert others[0] == where
        if dtype == "float64" and (mistake := MISTAKES.get(break_it)):
            assert [diagnosis.mistake for diagnosis in report.diagnoses] == [mistake]
    else:
        assert others == []  # it is smaller than what this arithmetic rounds


@pytest.mark.parametrize("number", range(40))
def test_any_element_that_is_changed_is_found(number: int) -> None:
    """Beyond the suite of faults: some number of some tensor, ten times what it may be off."""
    rng = np.random.default_rng(number)
    model = reference(CONFIG, number, "float32")
    tensors = dict(from_backend(random_model(CONFIG, number, "numpy", "float32"))(INPUTS))
    right = verify(model, tensors, INPUTS, "float32")
    assert right.passed
    check = right.table[rng.integers(len(right.table))]
    tensor = tensors[check.name].copy()
    real = INPUTS["attention_mask"].all(axis=1).nonzero()[0][0]  # the text without padding
    index = tuple(int(rng.integers(size)) if axis else int(real) for axis, size in enumerate(tensor.shape))
    tensor[index] += np.float32(1e-3 * max(abs(float(tensor[index])), 1.0))
    tensors[check.name] = tensor
    report = verify(model, tensors, INPUTS, "float32")
    assert report.first_failure is not None
    assert report.first_failure.name == check.name


def test_a_row_that_is_off_everywhere_is_found_though_no_element_is() -> None:
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


def test_padding_rows_may_hold_anything() -> None:
    model = reference(CONFIG, 0, "float64")
    tensors = {name: array.copy() for name, array in from_backend(model)(INPUTS).items()}
    padding = ~INPUTS["attention_mask"]
    for name, array in tensors.items():
        if TRACE_POINTS[general(name)] == "BTD":
            array[padding] = np.nan
    assert verify(model, tensors, INPUTS, "float64").passed


# --- what else may come -----------------------------------------------------------------------------------------------


def test_a_tensor_of_another_shape_is_a_finding() -> None:
    model = reference(CONFIG, 0, "float64")
    tensors = dict(from_backend(model)(INPUTS)) | {"lm_head": np.zeros((2, 6, 7))}
    found = verify(model, tensors, INPUTS, "float64").first_failure
    assert found is not None
    assert (found.name, found.note) == ("lm_head", "shape (2, 6, 7) where (2, 6, 256) is expected")


def test_nan_is_a_finding() -> None:
    model = reference(CONFIG, 0, "float64")
    tensors = {name: array.copy() for name, array in from_backend(model)(INPUTS).items()}
    tensors["decoder.layers.0.fc1"][0, 0, 0] = np.nan
    report = verify(model, tensors, INPUTS, "float64")
    assert failed(report) == ["decoder.layers.0.fc1"]
    assert report.table[-1].verdict == "pass"


def test_what_cannot_be_verified_is_refused() -> None:
    model = reference(CONFIG, 0, "float64")
    with pytest.raises(InputError, match="arithmetic='int8' is not known: pass one of float64, float32"):
        verify(model, {}, INPUTS, "int8")
    with pytest.raises(InputError, match="there are no decoder_input_ids"):
        verify(model, {}, {"input_ids": [[7]]})
    with pytest.raises(
        InputError, match="inputs have labels: a run takes input_ids, decoder_input_ids and their masks"
    ):
        verify(model, {}, {"input_ids": [[7]], "labels": [[7]]})
    with pytest.raises(InputError, match=r"attention_mask has shape \(1, 2\): expected \(1, 1\)"):
        verify(model, {}, {"input_ids": [[7]], "attention_mask": [[1, 1]], "decoder_input_ids": [[0]]})
    with pytest.raises(InputError, match=r"no tensor of a trace point's name: it has 'logits'"):
        verify(model, {"logits": np.zeros((2, 6, 256))}, INPUTS)


def test_names_that_are_not_known_are_listed() -> None:
    model = reference(CONFIG, 0, "float64")
    report = verify(
        model, dict(from_backend(model)(INPUTS)) | {"encoder.layers.7.tokens.fc1": np.zeros(3)}, INPUTS, "float64"
    )
    assert report.unknown == ["encoder.layers.7.tokens.fc1"]
