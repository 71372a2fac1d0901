"""Added tokens beside spiece.model: equal to transformers 4, whose answers are in data/added_tokens.json.

`tools/added_token_cases.py` wrote that file. Transformers 5 builds another tokenizer from spiece.model; see
test_tokenizer_json.py for what it saves.
"""

import copy
import json
import pickle
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pegasusx_ref import DEMO_CHECKPOINT, CheckpointError, PegasusTokenizer, PegasusXError

CASES = json.loads((Path(__file__).parent / "data" / "added_tokens.json").read_text(encoding="utf-8"))
SIZE = 6103  # ids of the embedded model


def write_folder(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(DEMO_CHECKPOINT / "spiece.model", folder)
    for name, entries in files.items():
        (folder / name).write_text(json.dumps(entries), encoding="utf-8")
    return folder


def with_tokens(folder: Path, **entries: Any) -> PegasusTokenizer:
    return PegasusTokenizer.from_pretrained(write_folder(folder, {"tokenizer_config.json": entries}))


@pytest.fixture(params=CASES)
def tokens(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PegasusTokenizer, dict[str, Any]]:
    """Our tokenizer of a folder with added tokens, and what transformers 4 gives for it."""
    found = CASES[request.param]
    return PegasusTokenizer.from_pretrained(write_folder(tmp_path / "source", found["files"])), found


# --- equal to transformers 4 -----------------------------------------------------------------------------------------


def test_ids_and_texts_equal_those_of_transformers_4(tokens: tuple[PegasusTokenizer, dict[str, Any]]) -> None:
    ours, expected = tokens
    for text, ids, whole, skipped in expected["texts"]:
        assert ours.encode(text) == ids, text
        assert whole in (None, ours.decode(ids[:-1]))
        assert ours.decode(ids, skip_special_tokens=True) == skipped
    for ids, text in expected["rows"]:
        assert ours.decode(ids, skip_special_tokens=True) == text


def test_vocabulary_equals_that_of_transformers_4(tokens: tuple[PegasusTokenizer, dict[str, Any]]) -> None:
    ours, expected = tokens
    added = expected["added"]
    assert (ours.vocab_size, len(ours)) == (SIZE, expected["length"])
    assert ours.convert_tokens_to_ids(list(added)) == list(added.values())
    assert ours.convert_ids_to_tokens(list(added.values())) == list(added)
    assert added.items() <= ours.get_vocab().items()
    assert len(ours.get_vocab()) == len(ours)
    assert ours.all_special_ids == [*range(106), *expected["special"]]
    assert ours.all_special_tokens == ours.convert_ids_to_tokens(ours.all_special_ids)


def test_saved_tokens_are_the_same_again(tokens: tuple[PegasusTokenizer, dict[str, Any]], tmp_path: Path) -> None:
    ours, expected = tokens
    ours.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"spiece.model", "tokenizer_config.json"}
    saved = PegasusTokenizer.from_pretrained(tmp_path / "saved")
    for same in (saved, pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert same.get_vocab() == ours.get_vocab()
        assert same.all_special_ids == ours.all_special_ids
        for text, ids, _, skipped in expected["texts"]:
            assert same.encode(text) == ids
            assert same.decode(ids, skip_special_tokens=True) == skipped


@pytest.mark.parametrize("name", ["flags", "older files", "names alone"])
def test_transformers_5_reads_the_ids_that_are_saved(transformers: Any, tmp_path: Path, name: str) -> None:
    ours = PegasusTokenizer.from_pretrained(write_folder(tmp_path / "source", CASES[name]["files"]))
    ours.save_pretrained(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(theirs) == len(ours)
    assert theirs.convert_tokens_to_ids(list(CASES[name]["added"])) == list(CASES[name]["added"].values())
    text = "the library<sep>and the package<doc>"
    assert theirs(text)["input_ids"] == ours.encode(text)


# --- where tokens are found ------------------------------------------------------------------------------------------


def test_added_tokens_have_one_id_and_keep_their_text(tmp_path: Path) -> None:
    ours = with_tokens(
        tmp_path, additional_special_tokens=["<sep>"], added_tokens_decoder={"6103": {"content": "<user>"}}
    )
    ids = ours.text_to_ids("the<sep>library<user> in")
    assert [i for i in ids if i >= SIZE] == [6104, 6103]
    assert ours.decode(ids) == "the <sep> library <user> in"
    assert ours.decode(ids, skip_special_tokens=True) == "the library <user> in"


def test_the_longest_token_is_found_and_none_is_cut(tmp_path: Path) -> None:
    names = ["<a>", "<a><b>", "<a><b><c>", "<b>x", "z"]
    ours = with_tokens(tmp_path, additional_special_tokens=names)
    for text, expected in (
        ("<a><b><c>", ["<a><b><c>"]),
        ("<a><b>x", ["<a><b>"]),
        ("<a><c><b>x", ["<a>", "<b>x"]),
        ("zz<a>z", ["z", "z", "<a>", "z"]),
    ):
        assert [token for token in ours.tokenize(text) if token in names] == expected


def test_a_single_word_beside_a_token_is_found_and_leaves_the_token_whole(tmp_path: Path) -> None:
    word = {"content": "zword", "single_word": True}
    ours = with_tokens(tmp_path, added_tokens_decoder={"6103": word}, additional_special_tokens=["<sep>"])
    assert ours.text_to_ids("<sep>zword<sep>") == [6104, 6103, 6104]  # transformers 4 cuts them into pieces
    assert 6103 not in ours.text_to_ids("zwords <sep>")
    assert 6103 not in ours.text_to_ids("szword")


def test_reserved_tokens_in_a_text_stay_text_beside_added_ones(tmp_path: Path) -> None:
    ours = with_tokens(tmp_path, additional_special_tokens=["<sep>"])
    plain = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    assert ours.text_to_ids("a </s> b<sep>") == [*plain.text_to_ids("a </s> b"), 6103]


def test_many_tokens_and_a_long_text_take_little_time(tmp_path: Path) -> None:
    names = [f"<extra_{i}>" for i in range(5000)]
    ours = with_tokens(tmp_path, additional_special_tokens=names)
    assert len(ours) == SIZE + 5000
    ids = ours.text_to_ids("<extra_1<extra_4999><" * 5000)
    assert ids.count(SIZE + 4999) == 5000


# --- files that contradict themselves --------------------------------------------------------------------------------

SEP, DOC = {"content": "<sep>"}, {"content": "<doc>"}
CONFLICTS: dict[str, tuple[dict[str, Any], str]] = {
    "id of a piece": ({"added_tokens_decoder": {"300": SEP}}, "'<sep>' has the id 300, which is another token's"),
    "id of a reserved token": ({"added_tokens_decoder": {"5": SEP}}, "'<sep>' has the id 5, which is another token's"),
    "two ids": ({"added_tokens_decoder": {"6103": SEP, "6104": SEP}}, "'<sep>' has two ids, 6103 and 6104"),
    "another id than its piece": (
        {"added_tokens_decoder": {"6103": {"content": "▁the"}}},
        "'▁the' has the ids 6103 and 109: a token has one",
    ),
    "reserved token elsewhere": (
        {"added_tokens_decoder": {"6103": {"content": "</s>"}}},
        "'</s>' has the ids 6103 and 1: a token has one",
    ),
    "no id": ({"added_tokens_decoder": {"x": SEP}}, "'x' is not the id of a token"),
    "negative": ({"added_tokens_decoder": {"-1": SEP}}, "'-1' is not the id of a token"),
    "huge": ({"added_tokens_decoder": {"99999999999": SEP}}, "is not the id of a token: it must be an integer below"),
    "leading zero": ({"added_tokens_decoder": {"06103": SEP}}, "'06103' is not the id of a token"),
    "not an object": ({"added_tokens_decoder": [SEP]}, "must be an object of tokens by id"),
    "no token": ({"added_tokens_decoder": {"6103": 5}}, "5 is not a token: it must be a text of 1 to 1,000 characters"),
    "no text": ({"added_tokens_decoder": {"6103": {"content": ""}}}, "is not a token: it must be a text of 1 to 1,000"),
    "long text": ({"additional_special_tokens": ["x" * 1001]}, "is not a token: it must be a text of 1 to 1,000"),
    "no flag": ({"added_tokens_decoder": {"6103": SEP | {"lstrip": "yes"}}}, "lstrip, rstrip, single_word, normalized"),
    "no list": ({"additional_special_tokens": "<sep>"}, "additional_special_tokens='<sep>' must be a list of tokens"),
    "another pad": ({"pad_token": "[PAD]"}, "pad_token='[PAD]', but PEGASUS-X checkpoints have '<pad>'"),
    "another eos": ({"eos_token": {"content": "<eos>"}}, "eos_token='<eos>', but PEGASUS-X checkpoints have '</s>'"),
    "another mask": ({"mask_token": "[MASK]"}, "mask_token='[MASK]', but PEGASUS-X checkpoints have '<mask_2>'"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts_are_one_clear_error(tmp_path: Path, name: str) -> None:
    entries, message = CONFLICTS[name]
    with pytest.raises(CheckpointError) as caught:
        with_tokens(tmp_path, **entries)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_conflicts_of_older_files_name_them(tmp_path: Path) -> None:
    for name, entries, message in (
        ("added_tokens.json", {"<a>": SIZE, "<b>": SIZE}, f"two tokens have the id {SIZE}, one is '<b>'"),
        ("added_tokens.json", {"<a>": "one"}, "'one' is not the id of a token"),
        ("special_tokens_map.json", {"pad_token": "[PAD]"}, "pad_token='[PAD]', but"),
        ("special_tokens_map.json", {"additional_special_tokens": [[]]}, "[] is not a token"),
    ):
        folder = write_folder(tmp_path / str(len(list(tmp_path.iterdir()))), {name: entries})
        with pytest.raises(CheckpointError) as caught:
            PegasusTokenizer.from_pretrained(folder)
        assert f"{folder / name}: {message}" in str(caught.value)


def test_older_files_do_not_count_beside_a_decoder(tmp_path: Path) -> None:
    files = {"added_tokens.json": {"<old>": SIZE}, "special_tokens_map.json": {"additional_special_tokens": ["<old>"]}}
    files["tokenizer_config.json"] = {"added_tokens_decoder": {str(SIZE): DOC}}
    ours = PegasusTokenizer.from_pretrained(write_folder(tmp_path, files))
    assert ours.convert_ids_to_tokens(SIZE) == "<doc>"
    assert len(ours) == SIZE + 1


@pytest.mark.slow
def test_drawn_files_are_read_or_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = Random(9)
    texts = ["<sep>", "<doc>", "▁the", "</s>", "", "x", "<unk_5>", "é", None, 5, "\ud800"]
    flags = ["lstrip", "rstrip", "single_word", "normalized", "special"]

    def token() -> Any:
        entry = {"content": rng.choice(texts)} | {flag: rng.choice([True, False]) for flag in rng.sample(flags, 3)}
        return rng.choice([entry, entry, rng.choice(texts), rng.choice([None, [], 3])])

    def entries() -> Any:
        ids = [0, 5, 105, 109, SIZE, SIZE + 1, SIZE + 3, "x", -1, 2**40]
        return {str(rng.choice(ids)): token() for _ in range(rng.randrange(4))}

    keys = ["additional_special_tokens", "extra_special_tokens", "sep_token", "cls_token", "bos_token", "pad_token"]
    read = 0
    for _ in range(10_000 if request.config.getoption("--long") else 100):
        write_folder(tmp_path, {})
        settings = {
            key: rng.choice([token(), [token() for _ in range(3)], {"a": token()}]) for key in rng.sample(keys, 1)
        }
        config = rng.choice([{}, {"added_tokens_decoder": entries()}]) | rng.choice([{}, settings])
        legacy = {str(rng.choice(texts)): rng.choice([SIZE, SIZE + 1, "x", None, 109]) for _ in range(2)}
        files = {"tokenizer_config.json": config, "special_tokens_map.json": settings, "added_tokens.json": legacy}
        for name in files:
            (tmp_path / name).unlink(missing_ok=True)
        write_folder(tmp_path, {name: files[name] for name in rng.sample(sorted(files), rng.randrange(4))})
        try:
            ours = PegasusTokenizer.from_pretrained(tmp_path)
        except PegasusXError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
            continue
        read += 1
        vocabulary = ours.get_vocab()
        assert sorted(vocabulary.values()) == sorted(set(vocabulary.values()))
        for text, token_id in vocabulary.items():
            if token_id >= SIZE:
                assert ours.text_to_ids(f" {text} ") == [token_id]
    assert read > 10
