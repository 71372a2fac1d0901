"""Three oracles for the attention core, each tied to the next: loop over tokens, dense with a mask, blocks."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lengths, seeds
from tolerances import OPERATION, assert_close

from pegasusx_ref.golden.attention import attention, causal_mask, merge_heads, softmax, split_heads
from pegasusx_ref.golden.global_local import block_bounds, global_local_attention
from pegasusx_ref.verification import dense_attention, token_loop_attention, visible_keys


class Core(NamedTuple):
    """Inputs of the attention core, and its mask as an index map."""

    heads: list[np.ndarray]  # q, k, v of tokens and of global tokens
    key_mask: np.ndarray | None
    blocks: list[tuple[int, int]]
    visible: np.ndarray  # (B, G + T, G + T)


@st.composite
def cores(draw: st.DrawFn) -> Core:
    B, H, F, G = (draw(st.integers(1, n)) for n in (3, 3, 4, 4))
    staggered = draw(st.booleans())
    K = 2 * draw(st.integers(1, 5)) if staggered else draw(st.integers(1, 10))
    T = draw(lengths(K))
    rng = np.random.default_rng(draw(seeds))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))  # 30: rows that attend to one key almost alone
    heads = [scale * rng.standard_normal((B, H, n, F)) for n in (T, T, T, G, G, G)]
    key_mask = rng.random((B, T)) < draw(st.sampled_from([0.0, 0.5, 0.9])) if draw(st.booleans()) else None
    blocks = block_bounds(T, K, staggered)
    visible = np.repeat(visible_keys(T, G, blocks)[None], B, axis=0)
    if key_mask is not None:
        visible[:, :, G:] &= key_mask[:, None, :]
    return Core(heads, key_mask, blocks, visible)


def with_oracle(core: Core, oracle: Callable[..., np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Run an oracle for every text and head; give the rows of tokens and of global tokens."""
    token_heads, global_heads = core.heads[:3], core.heads[3:]
    B, H, G, _ = global_heads[0].shape
    q, k, v = (np.concatenate([g, t], axis=2) for g, t in zip(global_heads, token_heads, strict=True))
    rows = np.stack([[oracle(q[b, h], k[b, h], v[b, h], core.visible[b]) for h in range(H)] for b in range(B)])
    return rows[:, :, G:], rows[:, :, :G]


def blocks_of(core: Core, heads: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    q, k, v, global_q, global_k, global_v = heads
    return global_local_attention(q, k, v, global_q, global_k, global_v, core.key_mask, core.blocks)


@given(cores())
def test_the_dense_oracle_equals_the_loop_over_tokens(core: Core) -> None:
    dense, loop = with_oracle(core, dense_attention), with_oracle(core, token_loop_attention)
    assert_close("tokens", dense[0], loop[0], OPERATION)
    assert_close("globals", dense[1], loop[1], OPERATION)


@given(cores())
def test_the_slices_equal_the_dense_oracle(core: Core) -> None:
    sliced = blocks_of(core, core.heads)
    dense = with_oracle(core, dense_attention)
    assert_close("tokens", sliced[0], dense[0], OPERATION)
    assert_close("globals", sliced[1], dense[1], OPERATION)


@given(cores(), st.data())
def test_a_row_changes_exactly_when_a_key_that_it_sees_changes(core: Core, data: st.DataObject) -> None:
    B, _, T, _ = core.heads[0].shape
    G = core.heads[3].shape[2]
    b, key = data.draw(st.integers(0, B - 1)), data.draw(st.integers(0, G + T - 1))
    before = np.concatenate(blocks_of(core, core.heads)[::-1], axis=2)
    moved = [head.copy() for head in core.heads]
    value = moved[5][b, :, key] if key < G else moved[2][b, :, key - G]
    value += 1e6  # a value moves every row that gives its key any weight worth mentioning
    after = np.concatenate(blocks_of(core, moved)[::-1], axis=2)
    changed = (after != before).any(axis=(1, 3))
    sees = np.zeros_like(changed)
    sees[b] = core.visible[b, :, key]
    assert not (changed & ~sees).any(), "a row sees a key that the index map hides"
    if max(np.abs(head).max() for head in core.heads) < 6:  # with huge scores a visible key may weigh nothing
        assert (changed == sees).all(), "a row misses a key that the index map shows"


@given(st.integers(1, 60), st.integers(1, 12), st.booleans())
def test_blocks_cover_every_token_once(T: int, half: int, staggered: bool) -> None:
    K = 2 * half
    blocks = block_bounds(T, K, staggered)
    assert [i for start, stop in blocks for i in range(start, stop)] == list(range(T))
    assert all(a[1] == b[0] for a, b in pairwise(blocks))
    assert blocks[0][1] == min(T, half if staggered else K)
    assert all(stop - start == K for start, stop in blocks[1:-1])


def test_the_edges_of_staggered_blocks_lie_in_the_middle_of_even_ones() -> None:
    assert block_bounds(21, 8, staggered=False) == [(0, 8), (8, 16), (16, 21)]
    assert block_bounds(21, 8, staggered=True) == [(0, 4), (4, 12), (12, 20), (20, 21)]


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 5), seeds)
def test_causal_queries_see_the_past_and_themselves(B: int, L: int, past: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((B, 2, n, 3)) for n in (L, past + L, past + L))
    whole = attention(q, k, v, causal_mask(L, past + L))
    for i in range(L):
        seen = past + i + 1
        alone = attention(q[:, :, i : i + 1], k[:, :, :seen], v[:, :, :seen])
        assert_close(f"row {i}", whole[:, :, i : i + 1], alone, OPERATION)


def test_masked_keys_weigh_exactly_nothing_and_hold_anything() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 1, n, 4)) for n in (3, 5, 5))
    mask = np.array([[True, False, True, False, True]])
    expected = attention(q, k[:, :, mask[0]], v[:, :, mask[0]])
    k[:, :, ~mask[0]] = 1e150
    v[:, :, ~mask[0]] = -1e150
    assert_close("context", attention(q, k, v, mask[:, None]), expected, OPERATION)


def test_masked_keys_weigh_nothing_beside_any_score() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.uniform(0.5, 1, (1, 1, n, 4)) for n in (3, 5, 5))
    k *= -1e12  # no score of a visible key comes near zero
    mask = np.array([[True, False, True, False, True]])
    expected = attention(q, k[:, :, mask[0]], v[:, :, mask[0]])
    assert_close("context", attention(q, k, v, mask[:, None]), expected, OPERATION)


def test_a_query_without_any_key_averages_evenly() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, n, 4)) for n in (3, 5, 5))
    nothing = np.zeros((1, 5), dtype=bool)
    even = np.broadcast_to(v.mean(axis=2, keepdims=True), (1, 2, 3, 4))
    assert_close("context", attention(q, k, v, nothing[:, None]), even, OPERATION)


def test_keys_and_values_must_match() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, n, 4)) for n in (3, 5, 6))
    with pytest.raises(AssertionError, match="match the queries"):
        attention(q, k, v)


def test_softmax_survives_huge_scores() -> None:
    scores = np.array([[8e307, 8e307, -8e307], [-1e5, -1e5 + 1.0, -1e5]])
    probs = softmax(scores)
    assert_close("row 0", probs[0], [0.5, 0.5, 0.0], OPERATION)
    assert_close("row 1", probs[1], np.exp([0.0, 1.0, 0.0]) / (2 + np.e), OPERATION)


def test_heads_take_neighbouring_features() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 12))
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 5, 4)
    assert (heads[:, 1] == x[:, :, 4:8]).all()
    assert (merge_heads(heads) == x).all()
