"""Inputs of users: unusual ones that are accepted, and one clear error before anything is computed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pegasusx_ref import (
    GenerationConfig,
    InputError,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
    record,
)

CONFIG = PegasusXConfig.preset("tiny")
V, D = CONFIG.vocab_size, CONFIG.d_model
RNG = np.random.default_rng(20)
SOURCE = RNG.integers(2, V, (2, 21))
TARGET = RNG.integers(2, V, (2, 5))
EMBEDS = RNG.standard_normal((2, 21, D))
MASK = np.arange(21) < np.array([[21], [13]])


@pytest.fixture(scope="module")
def model() -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_random(CONFIG, dtype="float64")


@pytest.fixture(scope="module")
def headless() -> PegasusXModel:
    return PegasusXModel.from_random(CONFIG, dtype="float64")


@pytest.fixture(params=["head", "headless"])
def either(request: pytest.FixtureRequest, model: Any, headless: Any) -> Any:
    return model if request.param == "head" else headless


def replaced(ids: np.ndarray, value: int) -> np.ndarray:
    ids = ids.copy()
    ids[1, 3] = value
    return ids


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def early_message_of(call: Callable[[], Any]) -> str:
    """Return the message of an error that is raised before the encoder runs."""
    with record("encoder.layers.*") as trace:
        message = message_of(call)
    assert not trace, f"computed {list(trace)[:3]} before the error"
    return message


# --- what is fine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["lists", "tuples", "list of arrays", "int32", "uint8", "fortran", "torch", "torch int32", "bool mask"]
)
def test_integers_of_every_kind_give_the_same_numbers(either: Any, kind: str) -> None:
    def convert(array: np.ndarray) -> Any:
        if kind.startswith("torch"):
            torch = pytest.importorskip("torch")
            return torch.tensor(array, dtype=torch.int32 if kind.endswith("int32") else torch.int64)
        if kind == "fortran":
            return np.asfortranarray(array)
        if kind == "bool mask":
            return array.astype(bool) if array is mask else array
        ways: dict[str, Any] = {
            "lists": array.tolist(),
            "tuples": tuple(tuple(row) for row in array.tolist()),
            "list of arrays": list(array),
        }
        return ways[kind] if kind in ways else array.astype(kind)

    mask = MASK.astype(np.int64)
    expected = either(SOURCE, mask, TARGET)
    found = either(convert(SOURCE), convert(mask), convert(TARGET))
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found.encoder_last_hidden_state, expected.encoder_last_hidden_state)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32, np.float64])
def test_masks_may_be_of_any_type(model: Any, dtype: Any) -> None:
    expected = model(SOURCE, MASK, TARGET).logits
    assert np.array_equal(model(SOURCE, MASK.astype(dtype), TARGET).logits, expected)
    assert not np.array_equal(model(SOURCE, None, TARGET).logits[1], expected[1])


def test_torch_masks_may_be_boolean(model: Any) -> None:
    torch = pytest.importorskip("torch")
    expected = model(SOURCE, MASK, TARGET).logits
    assert np.array_equal(model(SOURCE, torch.tensor(MASK), TARGET).logits, expected)


def test_a_mask_of_ones_equals_no_mask(either: Any) -> None:
    ones = (np.ones((2, 21), dtype=np.int64), None, np.ones((2, 5), dtype=bool))
    assert np.array_equal(either(SOURCE, ones[0], TARGET, ones[2])[0], either(SOURCE, None, TARGET)[0])


def test_padding_is_never_seen(either: Any) -> None:
    other = np.where(MASK, SOURCE, RNG.integers(0, V, SOURCE.shape))
    assert not np.array_equal(other, SOURCE)
    first, second = either(SOURCE, MASK, TARGET), either(other, MASK, TARGET)
    assert np.array_equal(first[0], second[0])
    states = first.encoder_last_hidden_state, second.encoder_last_hidden_state
    assert np.array_equal(states[0][MASK], states[1][MASK])


def test_padding_of_the_target_is_seen_unless_masked(model: Any) -> None:
    left = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])  # padding on the left, before what is to be predicted
    other = np.where(left, TARGET, RNG.integers(2, V, TARGET.shape))
    masked = [model(SOURCE, None, ids, left).logits[:, 2:] for ids in (TARGET, other)]
    seen = [model(SOURCE, None, ids).logits[:, 2:] for ids in (TARGET, other)]
    assert np.array_equal(masked[0], masked[1])
    assert not np.allclose(seen[0][0], seen[1][0])
    assert not np.allclose(seen[0][0], masked[0][0])


def test_a_mask_row_of_zeros_leaves_cross_attention_uniform_and_other_rows_alone(model: Any) -> None:
    mask = np.ones((2, 21), dtype=np.int64)
    mask[0] = 0
    masked = model(SOURCE, mask, TARGET, output_attentions=True)
    whole = model(SOURCE, None, TARGET, output_attentions=True)
    assert len(masked.cross_attentions) == CONFIG.decoder_layers
    for probs, others in zip(masked.cross_attentions, whole.cross_attentions, strict=True):
        assert np.allclose(probs[0], 1 / 21, rtol=1e-14)
        assert not np.allclose(others[0], 1 / 21, rtol=1e-2)
    assert np.allclose(masked.logits[1], whole.logits[1], rtol=0, atol=1e-12)
    assert np.isfinite(masked.logits).all()
    # The encoder's tokens of that row see the global tokens and nothing else.
    for layer in masked.encoder_attentions:
        for probs in layer["local"]:
            assert (probs[0, :, :, CONFIG.num_global_tokens :] == 0).all()
            assert (probs[1, :, :, CONFIG.num_global_tokens :] > 0).all()
        assert (layer["global"][0, :, :, CONFIG.num_global_tokens :] == 0).all()


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, CONFIG.max_position_embeddings + 3])
def test_any_source_length_is_fine(model: Any, length: int) -> None:
    ids = RNG.integers(0, V, (1, length))
    output = model(ids, decoder_input_ids=TARGET[:1])
    assert output.encoder_last_hidden_state.shape == (1, length, D)
    assert np.isfinite(output.logits).all()
    # The last token changes the logits.
    other = ids.copy()
    other[0, -1] = (other[0, -1] + 1) % V
    assert not np.allclose(model(other, decoder_input_ids=TARGET[:1]).logits, output.logits, rtol=0, atol=1e-9)


def test_the_first_and_last_id_of_the_vocabulary_are_valid(model: Any) -> None:
    logits = model([[0, V - 1]], decoder_input_ids=[[V - 1, 0]], labels=[[V - 1, 0]]).logits
    assert logits.shape == (1, 2, V)


def test_arguments_are_not_changed(model: Any) -> None:
    labels = np.where(np.arange(5) > 2, -100, TARGET)
    given = [SOURCE.copy(), MASK.copy(), labels.copy(), EMBEDS.copy()]
    model(given[0], given[1], labels=given[2])
    model(attention_mask=given[1], inputs_embeds=given[3], labels=given[2])
    for array, before in zip(given, [SOURCE, MASK, labels, EMBEDS], strict=True):
        assert np.array_equal(array, before)


def test_every_spelling_of_encoder_outputs_gives_the_same_numbers(either: Any) -> None:
    expected = either(SOURCE, MASK, TARGET)
    encoded = either.encode(SOURCE, MASK)
    last = encoded.last_hidden_state
    assert np.array_equal(either(encoder_outputs=encoded, decoder_input_ids=TARGET)[0], expected[0])
    for outputs in (last, (last,), [last], encoded.to_tuple()):
        found = either(encoder_outputs=outputs, attention_mask=MASK, decoder_input_ids=TARGET)
        assert np.array_equal(found[0], expected[0])
    # The mask belongs to the encoder's own output.
    assert not np.allclose(either(encoder_outputs=last, decoder_input_ids=TARGET)[0], expected[0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_embeddings_may_be_of_any_floating_type(model: Any, dtype: str) -> None:
    import ml_dtypes

    embeds = EMBEDS.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    expected = model(inputs_embeds=embeds.astype(np.float64), decoder_input_ids=TARGET).logits
    assert np.array_equal(model(inputs_embeds=embeds, decoder_input_ids=TARGET).logits, expected)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "with gradient"])
def test_embeddings_may_be_torch_tensors(model: Any, kind: str) -> None:
    torch = pytest.importorskip("torch")
    embeds = torch.tensor(EMBEDS, dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32)
    expected = model(inputs_embeds=embeds.double().numpy(), decoder_input_ids=TARGET).logits
    embeds.requires_grad_(kind == "with gradient")
    assert np.array_equal(model(inputs_embeds=embeds, decoder_input_ids=TARGET).logits, expected)


# --- token ids that are none -----------------------------------------------------------------------------------------

BAD_IDS: dict[str, tuple[Any, str]] = {
    "one sequence": (SOURCE[0], r"has shape (21,): expected (batch, tokens); wrap one sequence as [ids]"),
    "one id": (5, "has shape (): expected (batch, tokens)"),
    "three dimensions": (SOURCE[None], "has shape (1, 2, 21): expected (batch, tokens)"),
    "floats": (SOURCE.astype(float), "has dtype float64: token ids are integers"),
    "booleans": (SOURCE > 9, "has dtype bool: token ids are integers"),
    "text": ("a text", "token ids are integers"),
    "texts": ([["a", "b"], ["c", "d"]], "token ids are integers"),
    "nothing inside": ([[None, 3], [4, 5]], "token ids are integers"),
    "rows of different lengths": ([[3, 4, 5], [6]], "has rows of different lengths: pad them"),
    "no rows": (np.zeros((0, 5), dtype=np.int64), "has shape (0, 5): at least one sequence of at least one token"),
    "no tokens": (np.zeros((2, 0), dtype=np.int64), "has shape (2, 0): at least one sequence of at least one token"),
    "empty list": ([], "has shape (0,): expected (batch, tokens)"),
    "empty lists": ([[], []], "has shape (2, 0): at least one sequence"),
    "negative": (replaced(SOURCE, -1), "[1, 3] is -1: token ids of this model lie in [0, 256)"),
    "ignored label": (replaced(SOURCE, -100), "[1, 3] is -100: token ids of this model lie in [0, 256)"),
    "one too large": (replaced(SOURCE, V), "[1, 3] is 256: token ids of this model lie in [0, 256)"),
    "far too large": (replaced(SOURCE, 2**62), f"[1, 3] is {2**62}: token ids"),
    "large unsigned": (np.full((2, 21), 2**64 - 1, dtype=np.uint64), f"[0, 0] is {2**64 - 1}: token ids"),
    "beyond 64 bits": ([[2**70, 3]], "token ids are integers"),
}


@pytest.mark.parametrize("case", BAD_IDS)
def test_bad_source_ids_are_named_with_limit_and_remedy(either: Any, case: str) -> None:
    ids, expected = BAD_IDS[case]
    for call in (lambda: either(ids, decoder_input_ids=TARGET), lambda: either.encode(ids)):
        message = early_message_of(call)
        assert message.startswith("input_ids")
        assert expected in message


@pytest.mark.parametrize("case", BAD_IDS)
def test_bad_target_ids_are_named_before_anything_is_computed(either: Any, case: str) -> None:
    ids, expected = BAD_IDS[case]
    message = early_message_of(lambda: either(SOURCE, decoder_input_ids=ids))
    assert message.startswith("decoder_input_ids")
    assert expected in message


@pytest.mark.parametrize("case", [case for case in BAD_IDS if case != "ignored label"])
def test_bad_labels_are_named_before_anything_is_computed(model: Any, case: str) -> None:
    ids, expected = BAD_IDS[case]
    message = early_message_of(lambda: model(SOURCE, labels=ids))
    assert message.startswith("labels")
    assert expected in message


@pytest.mark.parametrize("case", BAD_IDS)
def test_bad_ids_to_generate_from_are_named(model: Any, case: str) -> None:
    ids, expected = BAD_IDS[case]
    assert expected in early_message_of(lambda: model.generate(ids))


# --- masks -----------------------------------------------------------------------------------------------------------

BAD_MASKS: dict[str, tuple[Any, str]] = {
    "too short": (MASK[:, :20], "has shape (2, 20): expected (2, 21)"),
    "too long": (np.ones((2, 22)), "has shape (2, 22): expected (2, 21)"),
    "one row": (MASK[:1], "has shape (1, 21): expected (2, 21)"),
    "flat": (MASK[0], "has shape (21,): expected (2, 21)"),
    "additive": (np.where(MASK, 0.0, -1e9), "has values other than 0 (padding) and 1"),
    "two": (np.where(MASK, 2, 0), "has values other than 0 (padding) and 1"),
    "half": (np.where(MASK, 0.5, 0), "has values other than 0 (padding) and 1"),
    "nan": (np.where(MASK, 1, np.nan), "has values other than 0 (padding) and 1"),
    "ragged": ([[1, 0], [1]], "has rows of different lengths"),
    "text": ("mask", "has shape (): expected (2, 21)"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_source_masks_are_named(either: Any, case: str) -> None:
    mask, expected = BAD_MASKS[case]
    for call in (lambda: either(SOURCE, mask, TARGET), lambda: either.encode(SOURCE, mask)):
        message = early_message_of(call)
        assert message.startswith("attention_mask")
        assert expected in message


def test_bad_target_mask_is_named(either: Any) -> None:
    message = message_of(lambda: either(SOURCE, None, TARGET, np.ones((2, 4))))
    assert message == "decoder_attention_mask has shape (2, 4): expected (2, 5), one value for each token"
    past = either(SOURCE, None, TARGET).past_key_values
    message = message_of(lambda: either(SOURCE, None, TARGET, np.ones((2, 5)), past_key_values=past))
    assert "expected (2, 10)" in message  # tokens of the cache count too


def test_mask_that_does_not_fit_encoder_outputs_is_named(either: Any) -> None:
    encoded = either.encode(SOURCE)
    message = early_message_of(
        lambda: either(encoder_outputs=encoded, attention_mask=MASK[:, :9], decoder_input_ids=TARGET)
    )
    assert "attention_mask has shape (2, 9): expected (2, 21)" in message


# --- embeddings ------------------------------------------------------------------------------------------------------

BAD_STATES: dict[str, tuple[Any, str]] = {
    "too narrow": (EMBEDS[:, :, :-1], "has shape (2, 21, 31): expected (batch, tokens, d_model=32)"),
    "too wide": (np.concatenate([EMBEDS, EMBEDS], axis=2), "has shape (2, 21, 64): expected (batch, tokens, d_model"),
    "one sequence": (EMBEDS[0], "has shape (21, 32): expected (batch, tokens, d_model=32)"),
    "no tokens": (EMBEDS[:, :0], "has shape (2, 0, 32): expected (batch, tokens, d_model=32), each at least 1"),
    "no rows": (EMBEDS[:0], "has shape (0, 21, 32): expected"),
    "integers": (RNG.integers(0, 9, (2, 21, D)), "has dtype int64: expected floating-point numbers"),
    "booleans": (EMBEDS > 0, "has dtype bool: expected floating-point numbers"),
    "complex": (EMBEDS + 1j, "has dtype complex128: expected floating-point numbers"),
    "raw bytes": (EMBEDS.astype(np.float32).view("V4"), "expected floating-point numbers"),
}


@pytest.mark.parametrize("case", BAD_STATES)
@pytest.mark.parametrize("name", ["inputs_embeds", "encoder_outputs"])
def test_bad_embeddings_are_named(either: Any, name: str, case: str) -> None:
    states, expected = BAD_STATES[case]
    message = early_message_of(lambda: either(**{name: states}, decoder_input_ids=TARGET))
    assert message.startswith(name)
    assert expected in message


@pytest.mark.parametrize("case", BAD_STATES)
def test_bad_target_embeddings_are_named(either: Any, case: str) -> None:
    states, expected = BAD_STATES[case]
    message = early_message_of(lambda: either(SOURCE, decoder_inputs_embeds=states))
    assert message.startswith("decoder_inputs_embeds")
    assert expected in message


@pytest.mark.parametrize("outputs", [(), [], "text", {}, 3])
def test_encoder_outputs_of_another_kind_are_named(either: Any, outputs: Any) -> None:
    message = early_message_of(lambda: either(encoder_outputs=outputs, decoder_input_ids=TARGET))
    assert message.startswith("encoder_outputs")


# --- arguments that do not fit each other ----------------------------------------------------------------------------


def test_two_sources_are_an_error_that_names_them(either: Any) -> None:
    message = early_message_of(lambda: either(SOURCE, inputs_embeds=EMBEDS, decoder_input_ids=TARGET))
    assert "exactly one of input_ids, inputs_embeds, encoder_outputs" in message
    assert "input_ids and inputs_embeds are given" in message
    encoded = either.encode(SOURCE)
    assert "input_ids and encoder_outputs are given" in early_message_of(
        lambda: either(SOURCE, encoder_outputs=encoded, decoder_input_ids=TARGET)
    )
    assert "inputs_embeds and encoder_outputs are given" in early_message_of(
        lambda: either(inputs_embeds=EMBEDS, encoder_outputs=encoded, decoder_input_ids=TARGET)
    )
    assert "input_ids and inputs_embeds are given" in early_message_of(
        lambda: either.encode(SOURCE, inputs_embeds=EMBEDS)
    )


def test_no_source_is_an_error(either: Any) -> None:
    for call in (lambda: either(decoder_input_ids=TARGET), lambda: either.encode()):
        message = early_message_of(call)
        assert message.startswith("pass exactly one of input_ids, inputs_embeds")
        assert message.endswith("none is given")


def test_nothing_to_generate_from_is_an_error(model: Any) -> None:
    assert "input_ids, inputs_embeds, encoder_outputs: none is given" in early_message_of(lambda: model.generate())


def test_two_targets_or_none_are_an_error(either: Any) -> None:
    embeds = RNG.standard_normal((2, 5, D))
    message = early_message_of(lambda: either(SOURCE, decoder_input_ids=TARGET, decoder_inputs_embeds=embeds))
    assert "decoder_input_ids and decoder_inputs_embeds are given" in message
    message = early_message_of(lambda: either(SOURCE))
    assert message == "pass exactly one of decoder_input_ids, decoder_inputs_embeds: none is given"


@pytest.mark.parametrize("rows", [1, 3])
def test_batches_of_different_sizes_are_an_error(either: Any, rows: int) -> None:
    target = RNG.integers(0, V, (rows, 5))
    message = message_of(lambda: either(SOURCE, decoder_input_ids=target))
    assert message == f"batch sizes differ (encoder: 2, decoder: {rows}): pass the same number of sequences"


def test_labels_of_another_batch_size_are_an_error(model: Any) -> None:
    message = message_of(lambda: model(SOURCE, labels=TARGET[:1]))
    assert "encoder: 2, decoder: 1" in message


def test_labels_that_are_all_ignored_are_an_error(model: Any) -> None:
    message = early_message_of(lambda: model(SOURCE, labels=np.full((2, 5), -100)))
    assert message == "labels are -100 everywhere: there is no loss without a label"
    assert np.isfinite(model(SOURCE, labels=replaced(np.full((2, 5), -100), 7)).loss)


def test_labels_are_what_is_predicted_after_those_before_them(model: Any) -> None:
    labels = np.where(RNG.random((2, 5)) < 0.3, -100, TARGET)
    labels[0, :2] = (-100, 9)
    seen = np.array([[0, *(0 if label == -100 else label for label in row[:-1])] for row in labels])
    given = model(SOURCE, labels=labels)
    shifted = model(SOURCE, decoder_input_ids=seen, labels=labels)
    assert np.array_equal(given.logits, shifted.logits)
    logits = given.logits - np.log(np.exp(given.logits).sum(axis=2, keepdims=True))
    terms = [logits[b, t, labels[b, t]] for b, t in np.argwhere(labels != -100)]
    assert 1 < len(terms) < labels.size
    assert given.loss == shifted.loss == pytest.approx(-np.mean(terms), rel=1e-12)


@pytest.mark.parametrize("length", [4, 6])
def test_labels_of_another_length_are_an_error(model: Any, length: int) -> None:
    labels = RNG.integers(0, V, (2, length))
    message = message_of(lambda: model(SOURCE, decoder_input_ids=TARGET, labels=labels))
    assert f"(2, {length})" in message
    assert "(2, 5)" in message


def test_labels_may_be_ignored_but_not_otherwise_negative(model: Any) -> None:
    message = early_message_of(lambda: model(SOURCE, labels=replaced(TARGET, -99)))
    assert message == (
        "labels[1, 3] is -99: token ids of this model lie in [0, 256), or are -100 where no loss is taken"
    )


# --- caches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_layers": 1},
        {"decoder_layers": 3},
        {"decoder_attention_heads": 2},
        {"d_model": 64},
    ],
    ids=str,
)
def test_cache_of_another_model_is_an_error(model: Any, changes: dict[str, int]) -> None:
    other = PegasusXForConditionalGeneration.from_random(CONFIG.replace(**changes), dtype="float64")
    past = other(SOURCE, decoder_input_ids=TARGET).past_key_values
    message = message_of(lambda: model(SOURCE, decoder_input_ids=TARGET, past_key_values=past))
    assert message.startswith("past_key_values")


@pytest.mark.parametrize("source", [SOURCE[:, :20], SOURCE[:1]], ids=["shorter", "smaller batch"])
def test_cache_of_another_source_is_an_error(either: Any, source: np.ndarray) -> None:
    past = either(SOURCE, decoder_input_ids=TARGET).past_key_values
    target = TARGET[: len(source)]
    message = message_of(lambda: either(source, decoder_input_ids=target, past_key_values=past))
    assert "past_key_values holds 2 layers of cross-attention keys [((2, 4, 21, 8), 'float64')]" in message
    assert f"({source.shape[0]}, 4, {source.shape[1]}, 8)" in message


@pytest.mark.parametrize("past", [(1, 2), [], {}, "cache", np.zeros(3)], ids=str)
def test_cache_of_another_kind_is_an_error(either: Any, past: Any) -> None:
    message = message_of(lambda: either(SOURCE, decoder_input_ids=TARGET, past_key_values=past))
    assert message.startswith(f"past_key_values is a {type(past).__name__}: pass on the past_key_values")


# --- keywords and outputs --------------------------------------------------------------------------------------------


def test_unknown_keyword_is_a_type_error_that_names_it(model: Any, headless: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: model(SOURCE, decoder_input_ids=TARGET, decoder_inputs_id=TARGET),
        lambda: headless(SOURCE, decoder_input_ids=TARGET, decoder_inputs_id=TARGET),
        lambda: model.encode(SOURCE, decoder_inputs_id=TARGET),
        lambda: model.generate(SOURCE, decoder_inputs_id=TARGET),
        lambda: PegasusXForConditionalGeneration.from_pretrained("folder", decoder_inputs_id=TARGET),  # type: ignore[call-arg]
        lambda: PegasusXModel.from_random(CONFIG, decoder_inputs_id=TARGET),  # type: ignore[call-arg]
    ]
    for call in calls:
        with pytest.raises(TypeError, match="'decoder_inputs_id'"):
            call()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("num_beam", "; did you mean 'num_beams'?"), ("seeds", "; did you mean 'seed'?"), ("pixel_values", "")],
)
def test_generate_names_an_unknown_argument_and_suggests_the_nearest_one(model: Any, name: str, hint: str) -> None:
    with pytest.raises(TypeError) as caught:
        model.generate(SOURCE, **{name: 1})
    assert str(caught.value) == f"generate() got an unexpected keyword argument {name!r}{hint}"


def test_a_model_without_a_head_takes_no_labels(headless: Any) -> None:
    with pytest.raises(TypeError, match="'labels'"):
        headless(SOURCE, labels=TARGET)


def test_outputs_are_found_by_name_and_by_position(model: Any, headless: Any) -> None:
    output = model(SOURCE, decoder_input_ids=TARGET)
    assert output["logits"] is output.logits is output[0] is output.to_tuple()[0]
    assert output["past_key_values"] is output.past_key_values is output[1]
    assert output["encoder_last_hidden_state"] is output.encoder_last_hidden_state is output[-1]
    assert output.loss is output.get("loss") is None
    assert len(output.to_tuple()) == len(output[:]) == 3

    scored = model(SOURCE, labels=TARGET)
    loss, logits = scored[:2]
    assert loss == scored.loss == scored["loss"]
    assert isinstance(loss, float)
    assert logits is scored.logits

    plain = headless(SOURCE, decoder_input_ids=TARGET)
    assert plain[0] is plain.last_hidden_state is plain["last_hidden_state"]
    encoded = headless.encode(SOURCE)
    assert encoded[0] is encoded.last_hidden_state is encoded["last_hidden_state"]


def test_positions_and_names_that_do_not_exist_are_errors(model: Any) -> None:
    output = model(SOURCE, decoder_input_ids=TARGET)
    with pytest.raises(IndexError):
        output[3]
    for name in ("loss", "logit", "to_tuple", "__class__"):
        with pytest.raises(KeyError, match=name):
            output[name]


def test_optional_outputs_are_there_when_asked_for_and_only_then(either: Any) -> None:
    optional = {
        "decoder_hidden_states": "hidden",
        "encoder_hidden_states": "hidden",
        "decoder_attentions": "attentions",
        "cross_attentions": "attentions",
        "encoder_attentions": "attentions",
    }
    for asked in ("", "hidden", "attentions", "hidden attentions"):
        output = either(
            SOURCE,
            decoder_input_ids=TARGET,
            output_hidden_states="hidden" in asked,
            output_attentions="attentions" in asked,
        )
        assert optional.keys() & output.keys() == {name for name, kind in optional.items() if kind in asked}


@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("configured", [True, False])
def test_cache_is_given_when_asked_for(use_cache: bool | None, configured: bool) -> None:
    model = PegasusXForConditionalGeneration.from_random(CONFIG.replace(use_cache=configured))
    output = model(SOURCE, decoder_input_ids=TARGET, use_cache=use_cache)
    assert (output.past_key_values is not None) is (configured if use_cache is None else use_cache)
    scored = model(SOURCE, labels=TARGET, use_cache=use_cache)
    assert (scored.past_key_values is not None) is bool(use_cache)


def test_cache_of_another_dtype_is_an_error(model: Any) -> None:
    past = model(SOURCE, decoder_input_ids=TARGET).past_key_values
    single = PegasusXForConditionalGeneration.from_random(CONFIG, dtype="float32")
    message = message_of(lambda: single(SOURCE, decoder_input_ids=TARGET, past_key_values=past))
    assert "float64" in message
    assert "float32" in message


def test_transformers_spellings_of_arguments(model: Any) -> None:
    expected = model.generate(SOURCE, MASK, max_new_tokens=3).tolist()
    assert model.generate(inputs=SOURCE, attention_mask=MASK, max_new_tokens=3).tolist() == expected
    message = message_of(lambda: model.generate(SOURCE, inputs=SOURCE))
    assert message.endswith("are two spellings of one argument: pass input_ids alone")
    message = message_of(lambda: model.generate(SOURCE, GenerationConfig(max_new_tokens=3)))
    assert "not attention_mask: pass generation_config=" in message


def test_outputs_are_no_plain_tuples(either: Any) -> None:
    output = either(SOURCE, decoder_input_ids=TARGET, return_dict=True)
    assert isinstance(output.to_tuple(), tuple)
    message = message_of(lambda: either(SOURCE, decoder_input_ids=TARGET, return_dict=False))
    assert message == "return_dict=False is not supported: call to_tuple() of the output"


def test_a_whole_models_output_serves_as_encoder_outputs(model: Any) -> None:
    output = model(SOURCE, MASK, decoder_input_ids=TARGET)
    again = model(encoder_outputs=output, decoder_input_ids=TARGET)
    assert np.array_equal(again.logits, output.logits)  # its mask too
    assert np.array_equal(again.encoder_attention_mask, MASK)
    other = np.ones_like(MASK)
    again = model(encoder_outputs=output, attention_mask=other, decoder_input_ids=TARGET)
    assert not np.allclose(again.logits, output.logits)
    assert again.encoder_attention_mask is None


def test_optional_outputs_of_another_encoder_are_passed_on(model: Any) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    encoded = model.encode(SOURCE, MASK)
    theirs = BaseModelOutput(encoded.last_hidden_state, hidden_states=("states",), attentions=("probs",))
    output = model(encoder_outputs=theirs, attention_mask=MASK, decoder_input_ids=TARGET)
    assert (output.encoder_hidden_states, output.encoder_attentions) == (("states",), ("probs",))
    whole = model(encoder_outputs=output, decoder_input_ids=TARGET)
    assert (whole.encoder_hidden_states, whole.encoder_attentions) == (("states",), ("probs",))
    flags = {"return_dict_in_generate": True, "output_hidden_states": True, "max_new_tokens": 2}
    written = model.generate(encoder_outputs=theirs, attention_mask=MASK, **flags)
    assert (written.encoder_hidden_states, written.encoder_attentions) == (("states",), None)


def test_outputs_know_which_fields_they_hold(model: Any) -> None:
    output = model(SOURCE, decoder_input_ids=TARGET)
    assert "logits" in output
    assert "loss" not in output
    assert "nonsense" not in output
    assert output == output
    assert list(output) == output.keys() == [name for name, _ in output.items()]
    assert len(output) == len(output.values()) == 3
    assert {**output}.keys() == dict(output).keys() == {"logits", "past_key_values", "encoder_last_hidden_state"}
    assert output.get("loss", 7) == output.get("nonsense", 7) == 7


def test_a_seed_below_zero_is_an_error() -> None:
    with pytest.raises(InputError, match="seed=-1 must be"):
        PegasusXForConditionalGeneration.from_random(CONFIG, seed=-1)
