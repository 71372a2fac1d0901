"""Pictures: index maps agree with the oracle, reach with changed tokens, block coordinates with the probabilities."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from pegasusx_ref import ExtraError, InputError, PegasusXConfig, listen, record
from pegasusx_ref.cli import main
from pegasusx_ref.golden.global_local import block_bounds
from pegasusx_ref.model.encoder import is_staggered
from pegasusx_ref.study.pictures.attention_probabilities import (
    average_by_word,
    cross_attention_probs,
    local_attention_probs,
)
from pegasusx_ref.study.pictures.block_coordinates import in_block_coordinates
from pegasusx_ref.study.pictures.index_map_areas import index_map_areas
from pegasusx_ref.study.pictures.reach import runs, token_reach
from pegasusx_ref.verification import visible_keys

pytestmark = pytest.mark.slow

TEXT = "Starling is a desktop program that draws maps of the night sky. It shows stars for any place and time."

shapes = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([2, 4, 8]),
        "num_global_tokens": st.integers(1, 3),
        "encoder_layers": st.integers(1, 4),
        "stagger_local_blocks": st.booleans(),
    }
)


@st.composite
def configs_and_lengths(draw: st.DrawFn) -> tuple[PegasusXConfig, int]:
    return PegasusXConfig.preset("tiny", **draw(shapes)), draw(st.integers(1, 21))


# --- the index map ---------------------------------------------------------------------------------------------------


@given(st.data())
def test_areas_of_the_index_map_cover_exactly_the_visible_keys(data: st.DataObject) -> None:
    config, T = data.draw(configs_and_lengths())
    layer = data.draw(st.integers(0, config.encoder_layers - 1))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=T, max_size=T)))
    G = config.num_global_tokens
    seen = np.zeros((G + T, G + T), dtype=bool)
    for kind, key, query, num_keys, num_queries in index_map_areas(config, T, layer, mask):
        seen[query : query + num_queries, key : key + num_keys] = kind != "padding"
    blocks = block_bounds(T, config.block_size, is_staggered(config, layer))
    assert (seen == (visible_keys(T, G, blocks) & np.pad(mask, (G, 0), constant_values=True))).all()


def test_runs_of_true() -> None:
    assert runs(np.array([True, True, False, True])) == [(0, 2), (3, 4)]
    assert runs(np.zeros(3, dtype=bool)) == []


# --- reach -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data())
def test_reach_is_the_positions_that_change_with_a_token(data: st.DataObject) -> None:
    """Random weights cancel nothing, so every position that can depend on the token changes."""
    config, T = data.draw(configs_and_lengths())
    token, seed = data.draw(st.integers(0, T - 1)), data.draw(st.integers(0, 99))
    model = random_model(config, seed)
    rng = np.random.default_rng(seed)
    before = rng.integers(0, config.vocab_size, (1, T))
    after = before.copy()
    after[0, token] = (after[0, token] + 1) % config.vocab_size
    with record("*.globals.input") as originals:
        states = model.encode(before, output_hidden_states=True).hidden_states
    assert states is not None
    changed = model.encode(after, output_hidden_states=True).hidden_states
    with listen(lambda name, _: originals[name], "*.globals.input"):  # global tokens without the change
        without = model.encode(after, output_hidden_states=True).hidden_states
    for others, through_globals in ((changed, True), (without, False)):
        assert others is not None
        differs = [(a != b).any(axis=(0, 2)) for a, b in zip(states, others, strict=True)]
        reached = token_reach(config, T, token, through_globals)
        assert (np.array(differs) == reached).all()


def test_the_base_model_needs_global_tokens_to_cross_a_long_text() -> None:
    """Check the numbers of chapter 8."""
    base = PegasusXConfig.preset("base")
    alone, both = (token_reach(base, 16384, 8000, g).sum(axis=1) for g in (False, True))
    assert list(alone) == [1, *(512 * layer for layer in range(1, 13))]
    assert list(both) == [1, 512, *[16384] * 11]


@pytest.mark.parametrize("token", [-1, 8])
def test_a_token_outside_the_text_is_rejected(token: int) -> None:
    with pytest.raises(InputError, match=rf"token={token} is outside the text: positions lie in \[0, 8\)"):
        token_reach(PegasusXConfig.preset("tiny"), 8, token)


# --- block coordinates -----------------------------------------------------------------------------------------------


def random_probs(blocks: list[tuple[int, int]], num_globals: int, num_heads: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = [rng.random((num_heads, stop - start, num_globals + stop - start)) for start, stop in blocks]
    return [w / w.sum(axis=-1, keepdims=True) for w in weights]


@given(st.data())
def test_cells_in_block_coordinates_are_means_of_queries_and_sums_of_keys(data: st.DataObject) -> None:
    T, K, G = data.draw(st.integers(1, 60)), 2 * data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    blocks = block_bounds(T, K, data.draw(st.booleans()))
    probs = random_probs(blocks, G, num_heads=2, seed=data.draw(st.integers(0, 99)))
    head = data.draw(st.sampled_from([None, 0, 1]))
    stack = in_block_coordinates(probs, blocks, head, data.draw(st.integers(1, 70)), data.draw(st.integers(1, 30)))
    rows = np.concatenate([stack.to_globals, stack.to_block], axis=1)
    assert np.allclose(np.nansum(rows, axis=1), 1)

    n = data.draw(st.integers(0, len(blocks) - 1))
    of_block = probs[n].mean(axis=0) if head is None else probs[n][head]
    first, queries, keys = stack.first_rows[n], stack.queries, stack.keys
    assert np.allclose(stack.to_globals[first, 0], of_block[:queries, : min(keys, G)].mean(axis=0).sum())
    assert np.allclose(stack.to_block[first, 0], of_block[:queries, G : G + keys].mean(axis=0).sum())
    S = blocks[n][1] - blocks[n][0]
    assert (np.isnan(stack.to_block[first]) == (np.arange(stack.to_block.shape[1]) * keys >= S)).all()


def test_16384_tokens_fit_on_a_screen() -> None:
    blocks = block_bounds(16384, 512, staggered=True)
    stack = in_block_coordinates(random_probs(blocks, 128, num_heads=1, seed=0), blocks)
    assert stack.to_block.shape == (512, 256)
    assert (stack.queries, stack.keys) == (32, 2)


def test_probabilities_of_other_blocks_are_rejected() -> None:
    blocks = block_bounds(10, 4, staggered=False)
    probs = random_probs(blocks, 2, num_heads=2, seed=0)
    with pytest.raises(InputError, match="do not fit blocks of"):
        in_block_coordinates(probs, block_bounds(10, 4, staggered=True))
    with pytest.raises(InputError, match="those of one text"):
        in_block_coordinates([p[None] for p in probs], blocks)
    with pytest.raises(InputError, match="head=2 does not exist: heads are 0 to 1"):
        in_block_coordinates(probs, blocks, head=2)


# --- words -----------------------------------------------------------------------------------------------------------


def test_rows_of_words_are_the_means_of_their_pieces() -> None:
    rows = np.arange(12.0).reshape(6, 2)
    means, words = average_by_word(rows, ["▁draw", "s", "▁maps", "</s>", "x", "▁"])
    assert words == ["draws", "maps", "</s>", "x", ""]
    assert means[:, 0].tolist() == [1.0, 4.0, 6.0, 8.0, 10.0]
    with pytest.raises(InputError, match="6 rows for 1 tokens"):
        average_by_word(rows, ["▁draw"])


# --- attention of a model --------------------------------------------------------------------------------------------


def test_recorded_attention_is_that_of_the_model_outputs() -> None:
    model = random_model(PegasusXConfig.preset("tiny"), seed=3)
    ids, target = np.arange(110, 131)[None], np.array([[0, 150, 160, 1]])
    output = model(ids, decoder_input_ids=target[:, :-1], output_attentions=True)
    assert output.encoder_attentions is not None
    assert output.cross_attentions is not None
    for layer in range(2):
        probs, blocks = local_attention_probs(model, ids, layer)
        assert blocks == block_bounds(21, 8, staggered=layer == 1)
        for ours, theirs in zip(probs, output.encoder_attentions[layer]["local"], strict=True):
            assert (ours == theirs[0]).all()
        of_heads = output.cross_attentions[layer][0]
        assert (cross_attention_probs(model, ids, target, layer, head=2) == of_heads[2]).all()
        assert (cross_attention_probs(model, ids, target, layer) == of_heads.mean(axis=0)).all()


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> Any:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[study]'")
    from pegasusx_ref.study import pictures

    return pictures


def test_every_axis_of_every_picture_is_labelled(pictures: Any) -> None:
    tiny, blocks = PegasusXConfig.preset("tiny"), block_bounds(21, 8, staggered=True)
    probs = random_probs(blocks, 4, num_heads=2, seed=1)
    figures = [
        pictures.index_map(tiny, 21, 1, np.arange(21) < 19),
        pictures.spread(tiny, 21, 7),
        pictures.attention_in_blocks(probs, blocks),
        pictures.cross_attention(np.full((2, 100), 0.01), [f"p{i}" for i in range(100)], ["a", "b"]),
    ]
    for figure in figures:
        assert figure.get_suptitle() or any(axes.get_title(loc="left") for axes in figure.axes)
        assert any(axes.get_xlabel() for axes in figure.axes)
        assert any(axes.get_ylabel() for axes in figure.axes)


def test_the_index_map_draws_cells_of_short_texts_and_areas_of_long_ones(pictures: Any) -> None:
    tiny, base = PegasusXConfig.preset("tiny"), PegasusXConfig.preset("base")
    (axes,) = pictures.index_map(tiny, 12, 0).axes
    assert len(axes.patches) == visible_keys(12, 4, block_bounds(12, 8, staggered=False)).sum()
    (axes,) = pictures.index_map(base, 16384, 1).axes
    assert len(axes.patches) == 33 + 2


def test_words_and_pieces_must_fit_the_probabilities(pictures: Any) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3\): 2 words over 4 pieces are expected"):
        pictures.cross_attention(np.zeros((2, 3)), list("abcd"), ["a", "b"])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pegasusx_ref.study import pictures

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ExtraError, match=r"pip install 'pegasusx-ref\[study\]'"):
        pictures.spread(PegasusXConfig.preset("tiny"), 9, 3)


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["picture", *map(str, arguments)], input=TEXT)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    "arguments",
    [
        ("index-map", "--tokens", 40, "--padding", 3, "--layer", 1),
        ("spread", "--preset", "base", "--tokens", 16384),
        ("attention", "-", "--layer", 2, "--head", 1),
        ("cross-attention", "-"),
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_command_writes_a_picture(
    pictures: Any, tmp_path: Path, arguments: tuple[object, ...], suffix: str
) -> None:
    out = tmp_path / f"picture.{suffix}"
    result = run(*arguments, "--out", out)
    assert (result.exit_code, result.output) == (0, "")
    assert out.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])


def test_the_command_notes_dropped_tokens(pictures: Any, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("maps " * 1100)
    result = run("attention", text, "--out", tmp_path / "picture.png")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"Note: {text} is longer than the model's 1024 tokens: the last 77 were dropped\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("spread", "--token", 200), "token=200 is outside the text: positions lie in [0, 200)"),
        (("index-map", "--layer", 3), "layer=3 does not exist: the encoder's layers are 0 to 2"),
        (("attention", "-", "--head", 4), "head=4 does not exist: heads are 0 to 3"),
        (("cross-attention", "-", "--layer", 3), "layer=3 does not exist: the decoder's layers are 0 to 2"),
        (("cross-attention", "-", "--head", 4), "head=4 does not exist: heads are 0 to 3"),
        (("spread", "--preset", "base", "--model", "x"), "--preset base and --model x exclude each other"),
        (("index-map", "--tokens", 9, "--padding", 9), "--padding 9 must be less than --tokens 9"),
    ],
    ids=str,
)
def test_the_command_reports_errors_in_one_line(
    pictures: Any, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    out = tmp_path / "picture.png"
    result = run(*arguments, "--out", out)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {message}\n")
    assert not out.exists()


@pytest.mark.parametrize(
    ("suffix", "problem"), [(".doc", "extension '.doc' is not an image format"), ("", "the extension is missing")]
)
def test_the_command_rejects_other_formats(pictures: Any, tmp_path: Path, suffix: str, problem: str) -> None:
    out = tmp_path / f"picture{suffix}"
    result = run("spread", "--out", out)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: --out {out}: {problem}: use .png, .svg or .pdf\n"
