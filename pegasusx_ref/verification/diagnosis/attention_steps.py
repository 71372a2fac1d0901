"""Attention as steps that a bug may replace: streams, blocks, scores, mask, softmax, weighted sum. [spec 16]"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from pegasusx_ref.golden.attention import merge_heads, softmax
from pegasusx_ref.verification.candidates.transformers_layout import Places
from pegasusx_ref.verification.checking.operations import HIDDEN, LOWEST

STEPS = ("scores", "probs", "context")


class Streams(NamedTuple):
    """Queries, keys and values of one attention.

    Attributes:
        q: (B, H, S, F).
        k: (B, H, X, F).
        v: (B, H, X, F).
        global_k: (B, H, G, F), G = 0 in the decoder.
        global_v: (B, H, G, F).
        visible: True where a query may attend to a key of k: (B, 1 or S, X).
        filling: key and value of what fills a block, (2, H, 1, F).
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    global_k: np.ndarray
    global_v: np.ndarray
    visible: np.ndarray
    filling: np.ndarray


class Block(NamedTuple):
    """The places of a block's queries and keys; -1 is a row that fills the block."""

    queries: Places
    keys: Places


class Part(NamedTuple):
    """What one block computes from, global tokens first among its keys.

    Attributes:
        q: (B, H, S, F).
        k: (B, H, G + X, F).
        v: (B, H, G + X, F).
        visible: (B, 1 or S, G + X).
        num_globals: G.
        block: the places of its queries, and of its keys without global tokens.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    visible: np.ndarray
    num_globals: int
    block: Block

    @property
    def is_global(self) -> np.ndarray:
        """Which keys are global tokens (G + X,)."""
        return np.arange(self.visible.shape[2]) < self.num_globals


def right_scores(part: Part) -> np.ndarray:
    """Compute scores before the mask; without a bug, no bit differs from the golden ones."""
    scores: np.ndarray = (part.q * part.q.shape[3] ** -0.5) @ part.k.swapaxes(2, 3)
    return scores


def right_mask(scores: np.ndarray, part: Part) -> np.ndarray:
    """Mask scores."""
    return np.where(part.visible[:, None], scores, LOWEST)


class Bug(NamedTuple):
    """An attention with one bug.

    Attributes:
        name: the bug in words.
        steps: those of `STEPS` that it changes although their inputs are right; the bug is in the first one.
        streams: changes queries, keys, values and the mask.
        blocks: changes the blocks of an encoder layer.
        part: changes what a block computes from.
        scores: computes scores before the mask.
        mask: masks scores.
        softmax: computes probabilities from masked scores.
        context: computes the weighted sum.
        needs_all_rows: whether a row of the result depends on other queries.
        extends: whether the first step alone cannot tell it from another bug.
        sees_filling: whether its result depends on rows that fill a block: they have a weight, or move other keys.
    """

    name: str
    steps: tuple[str, ...] = ("scores",)
    streams: Callable[[Streams], Streams] = lambda streams: streams
    blocks: Callable[[list[Block]], list[Block]] = lambda blocks: blocks
    part: Callable[[Part], Part] = lambda part: part
    scores: Callable[[Part], np.ndarray] = right_scores
    mask: Callable[[np.ndarray, Part], np.ndarray] = right_mask
    softmax: Callable[[np.ndarray, Part], np.ndarray] = lambda scores, _: softmax(scores)
    context: Callable[[np.ndarray, Part], np.ndarray] = lambda probs, part: probs @ part.v
    needs_all_rows: bool = False
    extends: bool = False
    sees_filling: bool = False


NO_BUG = Bug("no bug", ())


def take(x: np.ndarray, places: Places, filling: np.ndarray) -> np.ndarray:
    """Return rows (B, H, places, F); the filling (H, 1, F) at -1."""
    found: np.ndarray = x[:, :, places]
    return np.where((places >= 0)[:, None], found, filling) if (places < 0).any() else found


def part_of(streams: Streams, block: Block) -> Part:
    """Collect what a block computes from; what fills it is masked."""
    G, visible, (of_k, of_v) = streams.global_k.shape[2], streams.visible, streams.filling
    if visible.shape[1] > 1:
        visible = visible[:, block.queries]
    visible = visible[:, :, block.keys] & (block.keys >= 0)
    return Part(
        take(streams.q, block.queries, 0 * of_k),
        np.concatenate([streams.global_k, take(streams.k, block.keys, of_k)], axis=2),
        np.concatenate([streams.global_v, take(streams.v, block.keys, of_v)], axis=2),
        np.concatenate([np.ones((*visible.shape[:2], G), dtype=bool), visible], axis=2),
        G,
        block,
    )


def run(bug: Bug, part: Part, until: str, shown: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute a block up to a step, from the latest tensor that is shown; empty where that has another shape."""
    part = bug.part(part)
    B, H, S, _ = part.q.shape
    if (probs := shown.get("probs")) is None:
        if (scores := shown.get("scores")) is None:
            scores = bug.mask(bug.scores(part), part)
        elif scores.shape != (B, H, S, part.k.shape[2]):
            return np.empty(0)
        else:
            scores = np.where(scores <= HIDDEN, LOWEST, scores)
        if until == "scores":
            return scores
        probs = bug.softmax(scores, part)
        if probs.shape != scores.shape:
            return np.empty(0)
    elif probs.shape != (B, H, S, part.v.shape[2]):
        return np.empty(0)
    return probs if until == "probs" else bug.context(probs, part)


def block_result(
    bug: Bug, streams: Streams, block: Block, until: str, shown: Mapping[str, np.ndarray], rows: np.ndarray | None
) -> np.ndarray:
    """Compute a block up to a step, NaN in rows that are not asked for; empty where the bug cannot be there.

    Args:
        bug: in the block.
        streams: with the bug.
        block: with the bug.
        until: one of `STEPS`.
        shown: the candidate's tensors of the block, by step.
        rows: the queries to compute; None means all.
    """
    if until in shown:
        return shown[until]
    asked = np.full(len(block.queries), True)
    if rows is not None and not bug.needs_all_rows:
        asked = np.isin(block.queries, rows)
    if any(x.ndim != 4 or x.shape[2] != len(asked) for x in shown.values()):
        return np.empty(0)
    part = part_of(streams, Block(block.queries[asked], block.keys))
    result = run(bug, part, until, {step: x[:, :, asked] for step, x in shown.items()})
    if result.ndim != 4:
        return np.empty(0)
    found = np.full((*result.shape[:2], len(asked), result.shape[3]), np.nan)
    found[:, :, asked] = result
    return found


def all_contexts(
    bug: Bug,
    streams: Streams,
    blocks: list[Block],
    shown: list[dict[str, np.ndarray]],
    rows: np.ndarray | None = None,
    with_bug: Collection[int] | None = None,
) -> np.ndarray:
    """Compute the merged context of all blocks (B, S, D), NaN in rows that are not asked for.

    Args:
        bug: in the blocks `with_bug`, or in all where that is None.
        streams: right ones.
        blocks: right ones, maybe filled with zeros.
        shown: the candidate's tensors of each block, by step.
        rows: the queries to compute; None means all.
        with_bug: numbers of blocks.
    """
    B, H, S, F = streams.q.shape
    found, wrong_streams, wrong_blocks = np.full((B, S, H * F), np.nan), bug.streams(streams), bug.blocks(blocks)
    if with_bug is not None:
        pairs = zip(wrong_blocks, blocks, strict=False)
        wrong_blocks = [wrong if n in with_bug else right for n, (wrong, right) in enumerate(pairs)]
    for n, block in enumerate(wrong_blocks):
        is_real = block.queries >= 0
        if rows is not None and not bug.needs_all_rows and not np.isin(block.queries, rows).any():
            continue
        is_wrong, known = with_bug is None or n in with_bug, shown[n] if n < len(shown) else {}
        own, own_streams = (bug, wrong_streams) if is_wrong else (NO_BUG, streams)
        context = block_result(own, own_streams, block, "context", known, rows)
        if context.ndim != 4 or context.shape[2] != len(is_real) or context.shape[1] * context.shape[3] != H * F:
            return np.empty(0)
        found[:, block.queries[is_real]] = merge_heads(context[:, :, is_real])
    return found
