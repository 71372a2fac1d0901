"""The pretraining objective: hand-worked examples, the definition by brute force, and the script."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretraining.pairs import main, split_sentences

from pegasusx_ref.golden.gap_sentences import agreement, mask_sentences, principal_sentences, rouge_1

pytestmark = pytest.mark.unwatched

WORDS = st.lists(st.sampled_from("abcdef"), max_size=6)
TEXTS = st.lists(WORDS, min_size=1, max_size=6)


@pytest.mark.slow  # it imports nltk
def test_rouge_is_that_of_rouge_score() -> None:
    module = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    scorer, rng = module.RougeScorer(["rouge1"]), random.Random(0)
    for _ in range(200):
        candidate, reference = (rng.choices("abcdef", k=rng.randrange(7)) for _ in range(2))
        theirs = scorer.score(" ".join(reference), " ".join(candidate))["rouge1"].fmeasure
        assert rouge_1(candidate, reference) == pytest.approx(theirs)


def test_hand_worked_selection() -> None:
    """Sentence 1 has 3 of its 3 words in the rest (6 words), so 2 * 3 / 9; sentence 2 has none."""
    text = [["a", "b"], ["a", "b", "c"], ["x"], ["c", "d", "e"]]
    scores = [agreement(text, {i}, unique=False) for i in range(4)]
    assert scores == pytest.approx([2 * 2 / 9, 2 * 3 / 9, 0, 2 * 1 / 9])
    assert principal_sentences(text, 1) == [1]
    assert principal_sentences(text, 2) == [0, 1]
    # With sentence 1: 0 shares c only, of 4 words; 3 shares a and b, of 3 words.
    assert [agreement(text, {1, i}, unique=False) for i in (0, 2, 3)] == pytest.approx([2 / 9, 6 / 9, 4 / 9])
    assert principal_sentences(text, 2, sequential=True) == [1, 2]


def test_repeated_words_count_once_if_unique() -> None:
    text = [["a", "a", "a", "b"], ["a", "a", "a"], ["b", "c"]]
    assert principal_sentences(text, 1) == [0]
    assert principal_sentences(text, 1, unique=True) == [0]
    assert rouge_1(text[0], text[1]) == pytest.approx(6 / 7)
    assert rouge_1(text[0], text[1], unique=True) == pytest.approx(2 / 3)


@given(TEXTS, st.integers(0, 7), st.booleans(), st.booleans())
def test_selection_by_its_definition(text: list[list[str]], count: int, sequential: bool, unique: bool) -> None:
    found = principal_sentences(text, count, sequential, unique)
    assert found == sorted(set(found))
    assert len(found) == min(count, len(text))
    if not sequential:
        scores = [agreement(text, {i}, unique) for i in range(len(text))]
        left_out = [scores[i] for i in range(len(text)) if i not in found]
        assert min((scores[i] for i in found), default=2) >= max(left_out, default=-1)
    elif found:
        grown = principal_sentences(text, len(found) - 1, sequential, unique)
        assert set(grown) < set(found)
        best = max(agreement(text, {*grown, i}, unique) for i in range(len(text)) if i not in grown)
        assert agreement(text, found, unique) == best


@given(st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=4), min_size=1, max_size=6), st.data())
def test_a_masked_text_with_its_target_is_the_text(sentences: list[list[int]], data: st.DataObject) -> None:
    selected = data.draw(st.sets(st.integers(0, len(sentences) - 1)))
    kept = data.draw(st.sets(st.sampled_from(sorted(selected)))) if selected else set()
    source, target = mask_sentences(sentences, selected, 2, kept)
    assert source.count(2) == len(selected - kept)
    assert target == [token for i in sorted(selected) for token in sentences[i]]
    gaps = iter([sentences[i] for i in sorted(selected - kept)])
    assert [t for token in source for t in (next(gaps) if token == 2 else [token])] == [t for s in sentences for t in s]


def test_the_script_writes_pairs_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "texts", tmp_path / "pairs.jsonl"
    folder.mkdir()
    text = 'Stars shine at night. The map shows "stars" at night!\nIt is free (v1.2). The map shows planets.'
    (folder / "a.txt").write_text(text, encoding="utf-8")
    (folder / "b.txt").write_text("One sentence only", encoding="utf-8")
    main([str(folder), str(out)])
    (pair,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert pair == {
        "document": "Stars shine at night. <mask_1> It is free (v1.2). The map shows planets.",
        "summary": 'The map shows "stars" at night!',
    }
    assert capsys.readouterr().out == f"{out}: pairs 1, texts without two sentences, left out 1\n"
    main([str(folder), str(out), "--ratio", "0.5", "--kept", "0.5"])
    (pair,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert pair["document"].count("<mask_1>") == 1
    assert len(split_sentences(pair["summary"])) == 2


@pytest.mark.parametrize("wrong", [["nowhere", "out.jsonl"], [".", "out.jsonl"], [".", "out.jsonl", "--ratio", "2"]])
def test_wrong_arguments_of_the_script(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(wrong)
    assert "error: " in capsys.readouterr().err
    assert not Path("out.jsonl").exists()
