"""A tokenizer's settings, from its files and as arguments, and how it is found."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegasusx_ref import CheckpointError, InputError, PegasusTokenizer

TEXTS = ["every other value of the list", "the", "names of values"]


@pytest.fixture(scope="module")
def theirs(transformers: Any, tokenizer_folder: Path) -> Any:
    return transformers.PegasusTokenizer.from_pretrained(tokenizer_folder)


def with_settings(source: Path, folder: Path, **entries: Any) -> PegasusTokenizer:
    shutil.copy(source / "spiece.model", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    return PegasusTokenizer.from_pretrained(folder)


def on_the_left(folder: Path, **options: Any) -> PegasusTokenizer:
    return PegasusTokenizer.from_pretrained(folder, truncation_side="left", **options)


# --- sides -----------------------------------------------------------------------------------------------------------


def test_sides_come_from_the_file_and_arguments_win(tokenizer_folder: Path, tmp_path: Path) -> None:
    plain = PegasusTokenizer.from_pretrained(tokenizer_folder)
    assert (plain.truncation_side, plain.padding_side) == ("right", "right")
    ours = with_settings(tokenizer_folder, tmp_path, truncation_side="left", padding_side="left", model_max_length=9)
    assert (ours.truncation_side, ours.padding_side, ours.model_max_length) == ("left", "left", 9)
    ours.save_pretrained(tmp_path / "saved")
    again = PegasusTokenizer.from_pretrained(tmp_path / "saved")
    assert (again.truncation_side, again.padding_side, again.model_max_length) == ("left", "left", 9)
    options: Any = {"truncation_side": "right", "padding_side": "right", "model_max_length": 7}
    other = PegasusTokenizer.from_pretrained(tmp_path, **options)
    assert (other.truncation_side, other.padding_side, other.model_max_length) == ("right", "right", 7)
    constructed = PegasusTokenizer(tmp_path / "spiece.model", 7, {"truncation_side": "left"}, padding_side="left")
    assert (constructed.truncation_side, constructed.padding_side) == ("left", "left")


@given(
    numbers=st.lists(st.integers(0, 10**4), max_size=20), more=st.lists(st.integers(0, 10**4)), limit=st.integers(1, 30)
)
def test_left_truncation_equals_that_of_transformers(
    tokenizer_folder: Path, theirs: Any, prose: str, numbers: list[int], more: list[int], limit: int
) -> None:
    words = prose.split()
    one, two = (" ".join(words[i % len(words)] for i in drawn) for drawn in (numbers, more))
    ours = on_the_left(tokenizer_folder)
    if 105 in ours.encode(one, two) or "==" in one + two:  # transformers 5 splits these differently
        return
    for pair in (None, two):
        theirs.truncation_side = "left"
        expected = theirs(one, pair, max_length=limit, truncation=True)["input_ids"]
        theirs.truncation_side = "right"
        assert ours(one, pair, max_length=limit)["input_ids"] == expected


def test_left_truncation_keeps_the_last_tokens(tokenizer_folder: Path) -> None:
    ours = on_the_left(tokenizer_folder)
    whole = ours.encode(TEXTS[0])
    batch = ours(TEXTS[0], max_length=5)
    assert batch["input_ids"] == whole[-5:]
    assert batch.num_truncated_tokens == [len(whole) - 5]
    ours.truncation_side = "right"
    assert ours.encode(TEXTS[0], max_length=5) == [*whole[:4], 1]


def test_left_padding_equals_that_of_transformers_and_warns(tokenizer: PegasusTokenizer, theirs: Any) -> None:
    with pytest.warns(
        UserWarning, match="texts are padded on the left, which changes what the model computes"
    ) as caught:
        batch = tokenizer(TEXTS, padding=True, padding_side="left")
    assert len(caught) == 1
    assert Path(caught[0].filename) == Path(__file__)
    assert batch == dict(theirs(TEXTS, padding=True, padding_side="left"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(TEXTS[0], return_tensors="np", padding_side="left")  # nothing to pad


@pytest.mark.parametrize("value", ["up", "", 3, True, ["left"]])
@pytest.mark.parametrize("name", ["truncation_side", "padding_side"])
def test_an_unknown_side_is_an_error(tokenizer_folder: Path, tmp_path: Path, name: str, value: Any) -> None:
    message = re.escape(f"{name}={value!r} is unknown: choose 'right' or 'left'")
    with pytest.raises(CheckpointError, match=f"tokenizer_config.json: {message}"):
        with_settings(tokenizer_folder, tmp_path, **{name: value})
    with pytest.raises(InputError, match=message):
        PegasusTokenizer.from_pretrained(tokenizer_folder, **{name: value})
    ours = PegasusTokenizer.from_pretrained(tokenizer_folder)
    setattr(ours, name, value)
    with pytest.raises(InputError, match=message):
        ours("the list", max_length=2)


@pytest.mark.parametrize("value", [0, -1, "5", float("nan"), float("inf"), True, [5]])
def test_a_wrong_longest_length_is_an_error(tokenizer_folder: Path, value: Any) -> None:
    with pytest.raises(InputError, match="model_max_length="):
        PegasusTokenizer.from_pretrained(tokenizer_folder, model_max_length=value)


# --- options of a call -----------------------------------------------------------------------------------------------


def test_options_equal_those_of_transformers(tokenizer: PegasusTokenizer, theirs: Any) -> None:
    choices: list[dict[str, Any]] = [
        {"add_special_tokens": False},
        {"return_length": True},
        {"return_attention_mask": False},
        {"padding": True, "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 12, "truncation": True, "pad_to_multiple_of": 4},
        {"max_length": 3, "truncation": True, "add_special_tokens": False},
    ]
    for options in choices:
        for texts in (TEXTS, TEXTS[0]):
            assert tokenizer(texts, **options) == dict(theirs(texts, **options)), options
    assert tokenizer.encode("the list", add_special_tokens=False) == tokenizer.text_to_ids("the list")
    assert tokenizer.encode("the list", return_tensors="np").shape == (1, len(tokenizer.encode("the list")))
    assert (
        tokenizer(TEXTS, return_tensors="np", return_length=True).length.tolist()
        == [max(map(len, tokenizer(TEXTS).input_ids))] * 3
    )


def test_the_longest_length_is_that_of_padding_too(tokenizer_folder: Path) -> None:
    ours = PegasusTokenizer.from_pretrained(tokenizer_folder, model_max_length=6)
    batch = ours(TEXTS, padding="max_length")
    assert [len(row) for row in batch.input_ids] == [max(6, len(ours.encode(text))) for text in TEXTS]
    assert [len(row) for row in ours(TEXTS, padding="max_length", truncation=True).input_ids] == [6, 6, 6]


@pytest.mark.parametrize(
    "options",
    [
        {"pad_to_multiple_of": 0}, {"pad_to_multiple_of": 2.5}, {"pad_to_multiple_of": 2**40},
        {"add_special_tokens": "no"}, {"return_attention_mask": [1]}, {"return_length": "yes"}, {"padding_side": "up"},
        {"padding": True, "max_length": 5, "truncation": True, "pad_to_multiple_of": 4},
    ],
)  # fmt: skip
def test_invalid_options_are_named(tokenizer: PegasusTokenizer, options: Any) -> None:
    with pytest.raises(InputError, match=f"{list(options)[-1]}="):
        tokenizer("the list", **options)


@pytest.mark.parametrize(
    "name", ["stride", "return_overflowing_tokens", "is_split_into_words", "return_offsets_mapping"]
)
def test_options_that_do_not_exist_here_are_named(tokenizer: PegasusTokenizer, name: str) -> None:
    options: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=name):
        tokenizer("the list", **options)


def test_a_target_alone_is_encoded_like_a_text(tokenizer: PegasusTokenizer, theirs: Any) -> None:
    choices: list[dict[str, Any]] = [{}, {"max_length": 4, "truncation": True}, {"padding": True}]
    for options in choices:
        assert tokenizer(text_target=TEXTS, **options) == dict(theirs(text_target=TEXTS, **options))
        assert tokenizer(TEXTS, text_target=TEXTS[::-1], **options) == dict(
            theirs(TEXTS, text_target=TEXTS[::-1], **options)
        )
    nothing: list[dict[str, Any]] = [{}, {"text_target": TEXTS, "text_pair": TEXTS}]
    for texts in nothing:
        with pytest.raises(InputError, match="no texts: pass text, or text_target alone"):
            tokenizer(**texts)


# --- decoding --------------------------------------------------------------------------------------------------------


@given(
    words=st.lists(st.sampled_from(["do", "n't", "the", ".", ",", "?", "!", "'", "'s", "'m", "'re", "'ve", "value"]))
)
def test_spaces_are_cleaned_up_as_by_transformers(tokenizer: PegasusTokenizer, theirs: Any, words: list[str]) -> None:
    ids = tokenizer.encode(" ".join(words))
    for clean_up in (None, True, False):
        options: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": clean_up}
        plain = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        assert tokenizer.decode(ids, **options) == (theirs.clean_up_tokenization(plain) if clean_up else plain)
        assert tokenizer.batch_decode([ids], **options) == [tokenizer.decode(ids, **options)]


@pytest.mark.parametrize("name", ["skip_special_tokens", "clean_up_tokenization_spaces"])
def test_flags_of_decoding_are_truth_values(tokenizer: PegasusTokenizer, name: str) -> None:
    options: dict[str, Any] = {name: "yes"}
    with pytest.raises(InputError, match=f"{name}='yes' must be True or False"):
        tokenizer.decode([120], **options)


def test_the_file_can_turn_cleaning_up_on(tokenizer_folder: Path, tmp_path: Path) -> None:
    ours = with_settings(tokenizer_folder, tmp_path, clean_up_tokenization_spaces=True)
    ids = ours.text_to_ids("the list .")
    assert ours.decode(ids) == "the list."
    assert ours.decode(ids, clean_up_tokenization_spaces=False) == "the list ."
    with pytest.raises(CheckpointError, match="clean_up_tokenization_spaces='yes' must be true or false"):
        with_settings(tokenizer_folder, tmp_path, clean_up_tokenization_spaces="yes")


@given(ids=st.lists(st.sampled_from([0, 1, 105, 106, 107, 120, 200, 499]), max_size=6))
def test_no_spaces_are_left_at_the_edges(tokenizer: PegasusTokenizer, ids: list[int]) -> None:
    space = tokenizer.convert_tokens_to_ids("▁")
    text = tokenizer.decode([space, *ids, space], skip_special_tokens=True)
    assert text == text.strip()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        PegasusTokenizer.from_pretrained(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "folder" in str(caught.value)


def test_an_empty_folder_and_a_file_are_errors(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer: copy spiece\.model or tokenizer\.json from the original"):
        PegasusTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"spiece\.model: is a file: pass the folder that contains it"):
        PegasusTokenizer.from_pretrained(tokenizer_folder / "spiece.model")


def test_an_adapters_tokenizer_is_read_and_else_that_of_its_base(
    model_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": str(model_folder)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").touch()
    assert PegasusTokenizer.from_pretrained(tmp_path).vocab_file == model_folder / "spiece.model"
    with_settings(tokenizer_folder, tmp_path, additional_special_tokens=["<sep>"])
    ours = PegasusTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_file == tmp_path / "spiece.model"
    assert ours.text_to_ids("<sep>") == [500]
