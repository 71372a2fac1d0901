"""The recipe in tools/demo: parsing and splitting of pairs, intervals of figures, replacement of words."""

import io
import random
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import corpus
import evaluate
import numpy as np
import pytest
from corpus import MAX_SHARED, Pair, most_shared, read_pairs, shingles, split
from hypothesis import given, settings
from hypothesis import strategies as st

from pegasusx_ref import PegasusXConfig

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


def test_the_recipe_has_the_losses_of_transformers(transformers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights, over the same batches, in float32 and without dropout."""
    import torch
    import train
    from batches import Renaming, descriptions

    config = PegasusXConfig(vocab_size=300, **train.SHAPE)
    module = train.new_module(config, "float32")
    hf_model = transformers.PegasusXForConditionalGeneration(transformers.PegasusXConfig(**config.to_dict()))
    hf_model.load_state_dict(module.state_dict(), strict=False)
    stage = train.Stage(steps=6, learning_rate=2e-3, dropout=0.0, fragment=24)
    texts = [[int(i) for i in row] for row in np.random.default_rng(0).integers(3, 300, (5, 90))]
    sources, synopses = texts, [text[:9] for text in texts]
    rng = random.Random(1)
    pieces: Any = SimpleNamespace(get_piece_size=lambda: 0)
    feed = descriptions(sources, synopses, 200, Renaming(pieces), rng)
    batches = [next(feed) for _ in range(stage.steps)]
    found = []
    losses_of = train.losses_of

    def noted(*arguments: Any) -> Any:
        found.append(losses_of(*arguments))
        return found[-1]

    monkeypatch.setattr(train, "losses_of", noted)
    monkeypatch.setattr(train, "save", lambda *_: None)
    train.train(module, stage, iter(batches), [], Path(), io.StringIO())

    for part in hf_model.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.0
    hf_model.train()
    matrices = [p for p in hf_model.parameters() if p.ndim > 1]
    vectors = [p for p in hf_model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
    for step, (source, mask, targets) in enumerate(batches):
        encoded = hf_model.get_encoder()(input_ids=source, attention_mask=mask)
        losses = []
        for start, labels in targets:
            given = torch.nn.functional.pad(labels[:, :-1].clamp(min=0), (1, 0), value=start)
            logits = hf_model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=given).logits
            losses.append(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
            )
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(hf_model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * (step + 1) / 200
        optimizer.step()
        assert [loss.item() for loss in found[step]] == pytest.approx([loss.item() for loss in losses], rel=1e-5)
