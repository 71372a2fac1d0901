"""The recipe in tools/demo: parsing and splitting of pairs, intervals of figures, replacement of words."""

import random

import corpus
import evaluate
import numpy as np
import pytest
from corpus import MAX_SHARED, Pair, most_shared, read_pairs, shingles, split
from hypothesis import given, settings
from hypothesis import strategies as st

TRANSLATION = """Package: first
Description-md5: 0
Description-en: editor of texts
 This editor of texts has all that an editor of texts
 needs, and more of it than one thinks.
 .
 It has:
  * lines that are long enough
    to go on
  * colours

Package: second
Description-en: editor of texts -- twin
 This editor of texts, has all that an editor of texts needs, and more of it than one thinks. It has:
 * lines that are long enough to go on * colours

Package: third
Description-en: transitional package
 This is a transitional package that can be removed as soon as nothing depends on it any more, which may take long.

Package: fourth
Description-en: too short
 Hardly anything is said of it here.

Package: fifth
Description-md5: 0
"""


def test_pairs_are_read_unfolded_and_deduplicated() -> None:
    (pair,) = read_pairs(TRANSLATION)
    assert pair == Pair(
        "first",
        "This editor of texts has all that an editor of texts needs, and more of it than one thinks.\n"
        "It has:\n* lines that are long enough\nto go on\n* colours",
        "editor of texts",
    )


def test_shingles_are_runs_of_eight_words() -> None:
    assert shingles("A b, c d e f g h i!") == {"a b c d e f g h", "b c d e f g h i"}
    assert shingles("Too few.") == {"too few"}


@st.composite
def corpora(draw: st.DrawFn) -> list[Pair]:
    """Descriptions of a few sentences from a small pool, so that many share some."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sentences = [" ".join(rng.choice(list("abcdefgh"), size=rng.integers(5, 14))) for _ in range(12)]
    texts = {" ".join(rng.choice(sentences, size=rng.integers(1, 5))) for _ in range(40)}
    return [Pair(f"p{i}", text, f"synopsis {rng.integers(25)}") for i, text in enumerate(sorted(texts))]


@given(corpora())
@settings(max_examples=50)
def test_held_out_pairs_share_little_with_the_training_side(pairs: list[Pair]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "NUM_DEV", 3)
        patch.setattr(corpus, "NUM_TEST", 4)
        train, dev, test = split(pairs)
    assert (len(dev), len(test)) == (3, 4)
    for held_out in dev + test:
        own = shingles(held_out.description)
        for seen in train:
            assert len(own & shingles(seen.description)) / len(own) <= MAX_SHARED
            assert held_out.synopsis != seen.synopsis
    # No other pair is removed.
    synopses = {pair.synopsis for pair in dev + test}
    for removed in set(pairs) - {*train, *dev, *test}:
        assert removed.synopsis in synopses or most_shared([removed], dev + test)[0] > MAX_SHARED


def test_intervals_cover_the_mean_of_the_distribution() -> None:
    rng = np.random.default_rng(0)
    inside = [low < 3 < high for low, high in (evaluate.interval(rng.normal(3, 1, 60), rng) for _ in range(200))]
    assert 0.88 < np.mean(inside) < 0.99


def test_shared_pieces_get_the_same_replacement_in_both_texts() -> None:
    pytest.importorskip("torch")
    import sentencepiece
    from batches import NUM_COMMON, OFFSET, Renaming

    from pegasusx_ref import DEMO_CHECKPOINT

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(DEMO_CHECKPOINT / "spiece.model"))
    renaming, rng = Renaming(pieces), random.Random(0)
    rare = [OFFSET + NUM_COMMON + 7 * i for i in range(20)]
    common = [OFFSET + i for i in range(10, 20)]
    source, synopsis = [*rare, *common, 1], [rare[3], common[2], rare[5], 1]
    drawn = [renaming(source, synopsis, rng) for _ in range(400)]
    assert 150 < sum(pair == (source, synopsis) for pair in drawn) < 300
    for new_source, new_synopsis in drawn:
        assert new_source[20:] == source[20:]  # common pieces and </s> are kept
        assert [new_synopsis[0], new_synopsis[2]] == [new_source[3], new_source[5]]
        for old, new in zip(source, new_source, strict=True):
            begins = [pieces.id_to_piece(i - OFFSET).startswith("▁") for i in (old, new) if i > 1]
            assert len(set(begins)) <= 1
