"""The tokenizer against plain sentencepiece, against transformers, and the differences from the latter."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegasusx_ref import CheckpointError, InputError, PegasusTokenizer

OFFSET = 103
RESERVED = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *[f"<unk_{i}>" for i in range(2, 103)], "<unk>"]


@pytest.fixture(scope="module")
def pieces(tokenizer_folder: Path) -> Any:
    """Plain sentencepiece, what ours is made of."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(tokenizer_folder / "spiece.model"))


@pytest.fixture(scope="module")
def theirs(transformers: Any, tokenizer_folder: Path) -> Any:
    return transformers.PegasusTokenizer.from_pretrained(tokenizer_folder)


class Words(list[str]):
    """Words to draw from by numbers, so that Hypothesis prints numbers and not the whole list."""

    def __repr__(self) -> str:
        return f"<{len(self)} words>"

    def text(self, numbers: list[int]) -> str:
        return " ".join(self[number % len(self)] for number in numbers)


@pytest.fixture(scope="module")
def words(prose: str, tokenizer: PegasusTokenizer) -> Words:
    """Words of real prose, some with punctuation, all of whose characters the vocabulary knows."""
    found = sorted(set(re.findall(r"[A-Za-z]+[.,;]?", prose)))
    return Words(word for word in found if 105 not in tokenizer.text_to_ids(word))


@pytest.fixture(scope="module")
def short_words(words: Words, tokenizer: PegasusTokenizer) -> Words:
    """Words that are one token each, wherever they stand."""
    return Words(word for word in words if tokenizer.tokenize(word) == ["▁" + word])


NUMBERS = st.integers(0, 10_000)


# --- ids -------------------------------------------------------------------------------------------------------------


def test_reserved_ids_have_the_published_layout(tokenizer: PegasusTokenizer) -> None:
    assert len(RESERVED) == 106
    assert tokenizer.convert_ids_to_tokens(range(106)) == RESERVED
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 105)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<pad>", "</s>", "<unk>")
    assert list(tokenizer.all_special_ids) == list(range(106))


def test_other_ids_are_sentencepiece_ids_moved_by_103(tokenizer: PegasusTokenizer, pieces: Any) -> None:
    ids = range(106, tokenizer.vocab_size)
    assert tokenizer.convert_ids_to_tokens(ids) == [pieces.id_to_piece(i - OFFSET) for i in ids]


def test_vocabulary_counts_pieces_and_reserved_ids(tokenizer: PegasusTokenizer, pieces: Any) -> None:
    assert tokenizer.vocab_size == len(tokenizer) == pieces.get_piece_size() + OFFSET == 500


def test_vocabulary_is_a_two_way_map(tokenizer: PegasusTokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == tokenizer.vocab_size
    assert sorted(vocabulary.values()) == list(range(tokenizer.vocab_size))
    assert tokenizer.convert_tokens_to_ids(vocabulary) == list(vocabulary.values())


def test_tokens_outside_the_vocabulary_are_105(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(["no such piece", "日本"]) == [105, 105]


@pytest.mark.parametrize("token_id", [-1, 500, 10**9])
def test_ids_outside_the_vocabulary_have_no_token(tokenizer: PegasusTokenizer, token_id: int) -> None:
    with pytest.raises(InputError, match=rf"{token_id} is outside the vocabulary \[0, 500\)"):
        tokenizer.convert_ids_to_tokens([110, token_id])


# --- encoding --------------------------------------------------------------------------------------------------------


def as_defined(pieces: Any, text: str) -> list[int]:
    return [i + OFFSET if i > 1 else i for i in pieces.encode_as_ids(text)] + [1]


@pytest.mark.slow
@given(text=st.text())
def test_encoding_any_text_is_sentencepiece_moved_and_ended(
    tokenizer: PegasusTokenizer, pieces: Any, text: str
) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == as_defined(pieces, text)
    assert min([*ids[:-1], 105]) == 105  # nothing typed in a text becomes a special token


@given(start=st.integers(0, 77_000), length=st.integers(1, 3000))
def test_encoding_real_prose_is_sentencepiece_moved_and_ended(
    tokenizer: PegasusTokenizer, pieces: Any, prose: str, start: int, length: int
) -> None:
    start %= len(prose)
    text = prose[start : start + length]
    assert tokenizer.encode(text) == as_defined(pieces, text)
    known = {pieces.id_to_piece(i) for i in range(pieces.get_piece_size())}
    expected = [piece if piece in known else "<unk>" for piece in pieces.encode_as_pieces(text)]
    assert tokenizer.tokenize(text) == expected


def test_neighbouring_unknown_characters_are_one_id(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer("日本語")["input_ids"][1:] == [105, 1]
    assert tokenizer("日本語 日本語")["input_ids"].count(105) == 2


def test_newlines_and_tabs_are_spaces(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer("the\nlist\n\nof\tthe")["input_ids"] == tokenizer("the list of the")["input_ids"]


def test_empty_text_is_the_end_token_alone(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer("") == {"input_ids": [1], "attention_mask": [1]}


def test_lone_surrogate_becomes_a_question_mark(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer("the \ud800 list")["input_ids"] == tokenizer("the ? list")["input_ids"]


# --- batches ---------------------------------------------------------------------------------------------------------


def test_single_text_gives_flat_lists_and_a_list_gives_rows(tokenizer: PegasusTokenizer) -> None:
    ids = [*tokenizer.text_to_ids("the list of names"), 1]
    assert tokenizer("the list of names") == {"input_ids": ids, "attention_mask": [1] * len(ids)}
    assert tokenizer(["the list of names"]) == {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
    assert tokenizer(("the list of names",)) == {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
    assert tokenizer("the list of names", return_tensors="np").input_ids.shape == (1, len(ids))


def test_padding_fills_on_the_right_and_is_masked(tokenizer: PegasusTokenizer, words: Words) -> None:
    texts = [" ".join(words[40:47]), "the", " ".join(words[90:93])]
    whole = [tokenizer.encode(text) for text in texts]
    longest = max(len(row) for row in whole)
    for padding in (True, "longest"):
        batch = tokenizer(texts, padding=padding)
        for ids, mask, row in zip(batch.input_ids, batch.attention_mask, whole, strict=True):
            fill = longest - len(row)
            assert ids == row + [0] * fill
            assert mask == [1] * len(row) + [0] * fill
    for no_padding in (None, False, "do_not_pad"):
        assert tokenizer(texts, padding=no_padding).input_ids == whole


def test_padding_to_max_length_reaches_it(tokenizer: PegasusTokenizer) -> None:
    ids = tokenizer.encode("the list")
    batch = tokenizer(["the list", "of"], padding="max_length", max_length=9, return_tensors="np")
    assert batch.input_ids.shape == (2, 9)
    assert batch.input_ids[0].tolist() == ids + [0] * (9 - len(ids))
    assert batch.attention_mask.sum(axis=1).tolist() == [len(ids), len(tokenizer.encode("of"))]


def test_arrays_are_padded_by_default(tokenizer: PegasusTokenizer) -> None:
    texts = ["the list of names", "the"]
    batch = tokenizer(texts, return_tensors="np")
    assert isinstance(batch.input_ids, np.ndarray)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    assert batch.input_ids.tolist() == tokenizer(texts, padding=True).input_ids
    assert batch.attention_mask.tolist() == tokenizer(texts, padding=True).attention_mask


def test_torch_tensors_hold_the_same_numbers(tokenizer: PegasusTokenizer) -> None:
    torch = pytest.importorskip("torch")
    texts = ["the list of names", "the"]
    batch, arrays = tokenizer(texts, return_tensors="pt"), tokenizer(texts, return_tensors="np")
    for name in ("input_ids", "attention_mask"):
        assert isinstance(batch[name], torch.Tensor)
        assert batch[name].dtype == torch.int64
        assert np.array_equal(batch[name].numpy(), arrays[name])


def test_batch_is_read_by_name_and_by_attribute(tokenizer: PegasusTokenizer) -> None:
    batch = tokenizer("the list", return_tensors="np")
    assert batch.input_ids is batch["input_ids"]
    assert set(batch) == {"input_ids", "attention_mask"} == set(tokenizer.model_input_names)
    assert batch.to("cuda:0") is batch
    with pytest.raises(AttributeError, match="token_type_ids"):
        batch.token_type_ids  # noqa: B018


def test_targets_become_labels(tokenizer: PegasusTokenizer) -> None:
    batch = tokenizer(["the list of names", "of"], text_target=["names", "the list"], max_length=4, return_tensors="np")
    assert batch.labels.tolist() == tokenizer(["names", "the list"], max_length=4, padding=True).input_ids
    assert batch.input_ids.shape == (2, 4)


@given(rows=st.lists(st.lists(NUMBERS, max_size=8), min_size=1, max_size=4))
def test_batches_equal_those_of_transformers(
    tokenizer: PegasusTokenizer, theirs: Any, words: Words, rows: list[list[int]]
) -> None:
    texts = [words.text(row) for row in rows]
    ours = tokenizer(texts, padding=True)
    expected = theirs(texts, padding=True)
    assert ours.input_ids == expected["input_ids"]
    assert ours.attention_mask == expected["attention_mask"]


# --- truncation ------------------------------------------------------------------------------------------------------


def test_truncation_keeps_the_first_ids_and_the_end(tokenizer: PegasusTokenizer, prose: str) -> None:
    whole = tokenizer.encode(prose[500:900])
    assert len(whole) > 60
    for limit in (1, 2, 17, len(whole) - 1):
        batch = tokenizer(prose[500:900], max_length=limit)
        assert batch.input_ids == [*whole[: limit - 1], 1]
        assert batch.attention_mask == [1] * limit
        assert batch.num_truncated_tokens == [len(whole) - limit]
        assert tokenizer.encode(prose[500:900], max_length=limit) == batch.input_ids
    for limit in (len(whole), len(whole) + 1):
        assert tokenizer(prose[500:900], max_length=limit).input_ids == whole
        assert tokenizer(prose[500:900], max_length=limit).num_truncated_tokens == [0]


def test_each_text_counts_its_own_truncated_tokens(tokenizer: PegasusTokenizer, words: Words) -> None:
    texts = [" ".join(words[10:30]), "the", " ".join(words[60:64])]
    batch = tokenizer(texts, max_length=8, return_tensors="np")
    assert batch.num_truncated_tokens == [max(0, len(tokenizer.encode(text)) - 8) for text in texts]
    assert batch.num_truncated_tokens[0] > batch.num_truncated_tokens[2] > batch.num_truncated_tokens[1] == 0
    assert batch.input_ids.shape == (3, 8)


def test_truncation_true_uses_the_tokenizers_own_limit(tokenizer_folder: Path, words: Words) -> None:
    short = PegasusTokenizer(tokenizer_folder / "spiece.model", model_max_length=6)
    text = " ".join(words[20:30])
    whole = short.encode(text)
    assert len(whole) > 8
    assert short.encode(text, truncation=True) == [*whole[:5], 1]
    assert short.encode(text, truncation=True, max_length=8) == [*whole[:7], 1]
    assert short.encode(text, truncation=False, max_length=8) == whole
    assert short(text, truncation=False, max_length=8).num_truncated_tokens == [0]


def test_pairs_are_concatenated(tokenizer: PegasusTokenizer, theirs: Any) -> None:
    first, second = "the list of names", "every other value"
    expected = [*tokenizer.text_to_ids(first), *tokenizer.text_to_ids(second), 1]
    assert tokenizer(first, second).input_ids == tokenizer.encode(first, second) == expected
    assert theirs(first, second)["input_ids"] == expected
    rows = tokenizer([first, "of"], [second, "to"]).input_ids
    assert rows == [expected, [*tokenizer.text_to_ids("of"), *tokenizer.text_to_ids("to"), 1]]


@given(first=st.lists(NUMBERS, max_size=12), second=st.lists(NUMBERS, max_size=12), limit=st.integers(1, 26))
def test_pair_truncation_equals_that_of_transformers(
    tokenizer: PegasusTokenizer, theirs: Any, short_words: Words, first: list[int], second: list[int], limit: int
) -> None:
    assert len(short_words) > 50
    one, two, total = short_words.text(first), short_words.text(second), len(first) + len(second) + 1
    assert len(tokenizer.encode(one, two)) == total
    ours = tokenizer(one, two, max_length=limit)
    expected = theirs(one, two, max_length=limit, truncation="longest_first")
    assert ours.input_ids == expected["input_ids"]
    assert ours.attention_mask == expected["attention_mask"]
    assert ours.num_truncated_tokens == [max(0, total - limit)]


# --- decoding --------------------------------------------------------------------------------------------------------


@given(numbers=st.lists(NUMBERS, max_size=20))
def test_decoding_ordinary_text_equals_transformers(
    tokenizer: PegasusTokenizer, theirs: Any, words: Words, numbers: list[int]
) -> None:
    text = words.text(numbers)
    ids = [0, *tokenizer.encode(text), 0, 0]
    for skip in (False, True):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_decoding_real_prose_equals_transformers(tokenizer: PegasusTokenizer, theirs: Any, prose: str) -> None:
    (space,) = tokenizer.convert_tokens_to_ids(["▁"])  # at the start it is decoded differently: see below
    rows = [ids for line in prose.splitlines() if line.strip() and (ids := tokenizer.encode(line))[0] != space]
    assert len(rows) > 200
    for skip in (False, True):
        ours = tokenizer.batch_decode(rows, skip_special_tokens=skip)
        assert ours == [theirs.decode(row, skip_special_tokens=skip) for row in rows]


@given(ids=st.lists(st.integers(0, 520), max_size=30))
def test_decoding_any_ids_without_special_tokens_is_sentencepiece(
    tokenizer: PegasusTokenizer, pieces: Any, ids: list[int]
) -> None:
    expected = pieces.decode_ids([i - OFFSET for i in ids if 105 < i < 500])
    assert tokenizer.decode(ids, skip_special_tokens=True) == expected.strip()


def test_special_tokens_are_decoded_by_their_names(tokenizer: PegasusTokenizer, theirs: Any) -> None:
    the, names = tokenizer.text_to_ids("the"), tokenizer.text_to_ids("names")
    ids = [0, *the, 2, *names, 3, 4, *the, 104, 105, *names, 1, 0]
    assert tokenizer.decode(ids) == "<pad> the<mask_1> names<mask_2><unk_2> the<unk_102><unk> names</s><pad>"
    assert tokenizer.decode(ids) == theirs.decode(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the names the names"


@pytest.mark.parametrize("token_id", [500, 501, 10**12])
def test_ids_beyond_the_vocabulary_decode_to_nothing(tokenizer: PegasusTokenizer, theirs: Any, token_id: int) -> None:
    assert tokenizer.decode([token_id]) == ""
    the = tokenizer.text_to_ids("the")
    assert tokenizer.decode([*the, token_id]) == "the"
    if token_id < 2**32:
        assert theirs.decode([token_id]) == ""


@pytest.mark.parametrize("skip", [False, True])
def test_ids_to_decode_may_be_any_kind_of_integers(tokenizer: PegasusTokenizer, skip: bool) -> None:
    torch = pytest.importorskip("torch")
    ids = tokenizer.encode("every other value")
    text = "every other value" + ("" if skip else "</s>")
    for same in (ids, tuple(ids), iter(ids), np.array(ids), np.array(ids, dtype=np.uint16), torch.tensor(ids)):
        assert tokenizer.decode(same, skip_special_tokens=skip) == text
    assert tokenizer.batch_decode(np.array([ids, ids]), skip_special_tokens=skip) == [text, text]


@pytest.mark.parametrize("kind", ["int", "numpy", "0-d array", "0-d tensor"])
def test_a_single_id_is_decoded_too(tokenizer: PegasusTokenizer, kind: str) -> None:
    one: Any = tokenizer.text_to_ids("the")[0]
    if kind == "numpy":
        one = np.int64(one)
    elif kind == "0-d array":
        one = np.array(one)
    elif kind == "0-d tensor":
        one = pytest.importorskip("torch").tensor(one)
    assert tokenizer.decode(one) == "the"


# --- where transformers 5 differs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["every other value ", "every other value  ", "every other value\n", " \t\n"])
def test_trailing_whitespace_is_not_a_token(tokenizer: PegasusTokenizer, pieces: Any, theirs: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == as_defined(pieces, text) == tokenizer.encode(text.strip())
    space = tokenizer.convert_tokens_to_ids(["▁"])
    assert theirs(text)["input_ids"] == [*ids[:-1], *space, 1]


@pytest.mark.parametrize("token", ["</s>", "<pad>", "<mask_1>", "<mask_2>", "<unk_7>", "<unk>"])
def test_special_tokens_typed_in_a_text_are_text(
    tokenizer: PegasusTokenizer, pieces: Any, theirs: Any, token: str
) -> None:
    text = f"the {token} list"
    ids = tokenizer.encode(text)
    special = RESERVED.index(token)
    assert ids == as_defined(pieces, text)
    assert special not in ids[:-1]
    assert special in theirs(text)["input_ids"][:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_equally_probable_segmentations_are_sentencepieces_choice(
    tokenizer: PegasusTokenizer, pieces: Any, theirs: Any
) -> None:
    text = "=" * 20  # a rule of a table: several ways to cut it have the same probability
    ids, other = tokenizer.encode(text), theirs(text)["input_ids"]
    assert ids == as_defined(pieces, text)
    assert ids != other
    assert sorted(ids) == sorted(other)


def test_leading_empty_piece_is_decoded_as_sentencepiece_does(
    tokenizer: PegasusTokenizer, pieces: Any, theirs: Any
) -> None:
    ids = [*tokenizer.convert_tokens_to_ids(["▁"]), *tokenizer.text_to_ids("every")]
    assert tokenizer.decode(ids) == pieces.decode_ids([i - OFFSET for i in ids]) == "every"
    assert theirs.decode(ids) == " every"


# --- files -----------------------------------------------------------------------------------------------------------


def test_saving_and_loading_gives_the_same_tokenizer(tokenizer_folder: Path, tmp_path: Path, prose: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(tokenizer_folder / "spiece.model", source)
    entries = {"offset": 103, "model_max_length": 1024, "somebodys_key": [1, {"two": 3}]}
    (source / "tokenizer_config.json").write_text(json.dumps(entries))
    first = PegasusTokenizer.from_pretrained(str(source))
    first.save_pretrained(tmp_path / "new" / "folder")
    second = PegasusTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert first.model_max_length == second.model_max_length == 1024
    assert second.get_vocab() == first.get_vocab()
    assert second.encode(prose[:2000]) == first.encode(prose[:2000])
    assert (tmp_path / "new" / "folder" / "spiece.model").read_bytes() == (source / "spiece.model").read_bytes()
    written = json.loads((tmp_path / "new" / "folder" / "tokenizer_config.json").read_text())
    assert entries.items() <= written.items()


def test_saving_over_the_source_folder_keeps_the_model(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tokenizer_folder / "spiece.model", tmp_path)
    PegasusTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    PegasusTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "spiece.model").read_bytes() == (tokenizer_folder / "spiece.model").read_bytes()


def test_saving_replaces_the_model_of_another_tokenizer(tokenizer: PegasusTokenizer, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"what lay here before")
    tokenizer.save_pretrained(tmp_path)
    assert PegasusTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_without_a_configuration_there_is_no_limit(tokenizer: PegasusTokenizer, prose: str) -> None:
    whole = tokenizer.encode(prose[:20000])
    assert len(whole) > 5000
    assert tokenizer.encode(prose[:20000], truncation=True) == whole


def test_transformers_loads_what_is_saved(
    transformers: Any, tokenizer: PegasusTokenizer, tmp_path: Path, prose: str
) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert "Pegasus" in type(loaded).__name__
    assert len(loaded) == tokenizer.vocab_size
    lines = [line.strip() for line in prose.splitlines() if line.strip()]
    assert len(lines) > 500
    assert loaded(lines)["input_ids"] == tokenizer(lines).input_ids
    tokens = tokenizer.convert_ids_to_tokens(range(500))
    assert loaded.convert_ids_to_tokens(list(range(500))) == tokens


def test_masks_keep_their_original_ids_where_transformers_swaps_them(
    transformers: Any, tokenizer_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(tokenizer_folder / "spiece.model", tmp_path)
    transformers.PegasusTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()  # so that transformers builds from spiece.model, with its own configuration
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.convert_ids_to_tokens([1, 2, 3, 4]) == ["</s>", "<mask_2>", "<mask_1>", "<unk_2>"]
    ours = PegasusTokenizer.from_pretrained(tmp_path)
    assert ours.convert_ids_to_tokens([1, 2, 3, 4]) == ["</s>", "<mask_1>", "<mask_2>", "<unk_2>"]
    assert ours.encode("every other value") == loaded("every other value")["input_ids"]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path: Path) -> None:
    """`from_pretrained` is tested in test_tokenizer_settings.py."""
    with pytest.raises(CheckpointError, match=r"spiece\.model: cannot be read: No such file or directory"):
        PegasusTokenizer(tmp_path / "spiece.model")


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 8], ids=["empty", "text", "bytes"])
def test_another_file_is_no_sentencepiece_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        PegasusTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path / "spiece.model") in str(caught.value)


def test_truncated_model_is_no_sentencepiece_model(tokenizer_folder: Path, tmp_path: Path) -> None:
    content = (tokenizer_folder / "spiece.model").read_bytes()
    (tmp_path / "spiece.model").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"spiece\.model: not a SentencePiece model"):
        PegasusTokenizer.from_pretrained(tmp_path)


def test_another_layout_is_refused_with_the_remedy(tmp_path: Path, prose: str) -> None:
    from sentencepiece import SentencePieceTrainer

    with (tmp_path / "spiece.model").open("wb") as file:
        SentencePieceTrainer.train(  # T5's way: <unk> 0, <s> 1, </s> 2
            sentence_iterator=iter(prose.splitlines()[:200]),
            model_writer=file,
            vocab_size=120,
            num_threads=1,
            minloglevel=2,
        )
    with pytest.raises(CheckpointError) as caught:
        PegasusTokenizer.from_pretrained(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "spiece.model") in message
    assert "eos and unk have the ids (2, 0), but a Pegasus model has (1, 2)" in message
    assert "eos_id=1, unk_id=2" in message


@pytest.mark.parametrize("offset", [0, 102, None])
def test_another_offset_is_refused(tokenizer_folder: Path, tmp_path: Path, offset: Any) -> None:
    shutil.copy(tokenizer_folder / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"offset": offset}))
    with pytest.raises(CheckpointError) as caught:
        PegasusTokenizer.from_pretrained(tmp_path)
    assert f"tokenizer_config.json: offset={offset}, but PEGASUS-X checkpoints have 103" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '"text"', '{"model_max_length": "long"}', '{"model_max_length": Infinity}', '{"model_max_length": 0}'],
)
def test_bad_tokenizer_configuration_is_named(tokenizer_folder: Path, tmp_path: Path, content: str) -> None:
    shutil.copy(tokenizer_folder / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        PegasusTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("ids", [[-100], [110, 111, -1], np.array([120, -100]), -3])
def test_negative_ids_are_refused_with_the_remedy(tokenizer: PegasusTokenizer, ids: Any) -> None:
    for skip in (False, True):
        with pytest.raises(InputError, match=r"token id -\d+ is negative: replace ignored labels"):
            tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("ids", ["120", b"120", [1.5], np.array([120.0]), ["120"], [[120, 121]], None, [None]])
def test_only_integers_are_decoded(tokenizer: PegasusTokenizer, ids: Any) -> None:
    with pytest.raises(InputError):
        tokenizer.decode(ids)


@pytest.mark.parametrize("text", [[1], [None], ["the", 3], [["the"]], b"the", None, 5])
def test_only_texts_are_encoded(tokenizer: PegasusTokenizer, text: Any) -> None:
    with pytest.raises(InputError):
        tokenizer(text)


def test_wrong_type_is_named(tokenizer: PegasusTokenizer) -> None:
    with pytest.raises(InputError, match="expected a text, got a list: "):
        tokenizer([["the", "list"]])  # type: ignore[list-item]
    with pytest.raises(InputError, match="expected a text, got a int: 7"):
        tokenizer.text_to_ids(7)  # type: ignore[arg-type]


def test_no_texts_are_an_error(tokenizer: PegasusTokenizer) -> None:
    with pytest.raises(InputError, match="no texts: pass at least one"):
        tokenizer([])


def test_different_numbers_of_texts_and_pairs_are_an_error(tokenizer: PegasusTokenizer) -> None:
    with pytest.raises(InputError, match="text has 2 texts, text_pair 1: pass the same number"):
        tokenizer(["the", "list"], "of")


@pytest.mark.parametrize("limit", [0, -4])
def test_max_length_must_fit_the_end_token(tokenizer: PegasusTokenizer, limit: int) -> None:
    with pytest.raises(InputError, match=f"max_length={limit} leaves no room for </s>: it must be at least 1"):
        tokenizer("the list", max_length=limit)


@pytest.mark.parametrize("limit", ["5", 2.5, [3], True])
def test_max_length_must_be_an_integer(tokenizer: PegasusTokenizer, limit: Any) -> None:
    with pytest.raises(InputError, match="max_length="):
        tokenizer("the list of names", max_length=limit)


@pytest.mark.parametrize("options", [{"padding": "right"}, {"padding": "max_length"}, {"padding": 3}])
def test_unknown_padding_is_an_error_that_lists_the_choices(tokenizer: PegasusTokenizer, options: Any) -> None:
    with pytest.raises(InputError, match=rf"padding={options['padding']!r}: choose True, False, or 'max_length'"):
        tokenizer("the list", **options)


@pytest.mark.parametrize("truncation", ["only_first", "only_second", "shortest_first", 3])
def test_truncation_strategies_that_do_not_exist_here_are_refused(tokenizer: PegasusTokenizer, truncation: Any) -> None:
    with pytest.raises(InputError, match=f"truncation={truncation!r}"):
        tokenizer("the list of names", "every other value", max_length=4, truncation=truncation)


def test_unknown_tensors_are_an_error_that_lists_the_choices(tokenizer: PegasusTokenizer) -> None:
    with pytest.raises(InputError, match="return_tensors='tf' is unknown: choose 'np', or 'pt'"):
        tokenizer("the list", return_tensors="tf")


def test_ragged_arrays_are_an_error_with_the_remedy(tokenizer: PegasusTokenizer) -> None:
    with pytest.raises(InputError, match="texts of different lengths cannot form an array: pass padding=True"):
        tokenizer(["the list of names", "the"], return_tensors="np", padding=False)


def test_torch_tensors_without_torch_name_the_package_to_install(
    tokenizer: PegasusTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pegasusx-ref\[torch\]"):
        tokenizer("the list", return_tensors="pt")


def test_unknown_argument_is_a_type_error_that_names_it(tokenizer: PegasusTokenizer) -> None:
    with pytest.raises(TypeError, match="add_special_token"):
        tokenizer("the list", add_special_token=False)  # type: ignore[call-arg]


def test_single_tokens_and_ids_are_translated(tokenizer: PegasusTokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids("</s>") == 1
    assert tokenizer.convert_ids_to_tokens(1) == "</s>"
    assert tokenizer.convert_tokens_to_ids(["</s>", "<pad>"]) == [1, 0]


def test_padding_to_no_limit_is_an_error(tokenizer: PegasusTokenizer) -> None:
    with pytest.raises(InputError, match="'max_length' together with max_length"):
        tokenizer("the list", truncation=True, padding="max_length")


def test_numpy_integers_are_valid_lengths(tokenizer: PegasusTokenizer) -> None:
    assert len(tokenizer("the list of names", max_length=np.int64(3))["input_ids"]) == 3  # type: ignore[arg-type]
