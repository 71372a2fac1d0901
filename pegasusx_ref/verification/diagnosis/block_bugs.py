"""Known bugs in the blocks of an encoder layer: their bounds, their keys, the order of their keys. [spec 8]"""

from functools import partial

import numpy as np

from pegasusx_ref.model.encoder import is_staggered
from pegasusx_ref.verification.candidates.transformers_layout import Places, padded_blocks
from pegasusx_ref.verification.diagnosis.attention_inputs import Attention
from pegasusx_ref.verification.diagnosis.attention_steps import Block, Bug, Part, Streams, right_mask

LAYOUT = "keys are in the order tokens, globals: a layout, not a fault; reorder them in a map"
EVERYWHERE = ("scores", "context")
MAX_NEIGHBOURS = 2  # keys by which a block may be too long at either end


def block_bugs(attention: Attention) -> list[Bug]:
    """List wrong blocks of tokens, and wrong orders of keys."""
    if not attention.is_encoder:
        return []
    found = [Bug(LAYOUT, EVERYWHERE, mask=globals_last, context=with_values_reordered)]
    if attention.kind == "globals":
        return found
    streams = attention.streams
    assert streams is not None
    T, K, half = streams.k.shape[2], attention.config.block_size, attention.config.block_size // 2
    staggered = is_staggered(attention.config, attention.number)
    for bug, places in block_alternatives(T, K, staggered).items():
        for filled in (False, True)[: 1 + (attention.step != "out_proj")]:  # no block's shape is compared there
            found.append(Bug(bug, EVERYWHERE, blocks=partial(other_blocks, places, filled)))
    for step in sorted({1, 2, half, K}):
        for sign, side in ((1, "early"), (-1, "late")):
            bug = f"the keys of each block start {step} token{'s' * (step > 1)} too {side}"
            for wraps in (True, False):
                found.append(
                    Bug(bug, EVERYWHERE, blocks=partial(moved_keys, sign * step, wraps, T), sees_filling=wraps)
                )
    for before, after, words in (
        (1, 0, "the previous block"),
        (0, 1, "the next block"),
        (1, 1, "both neighbouring blocks"),
    ):
        found.append(Bug(f"tokens see {words} too", EVERYWHERE, blocks=partial(with_neighbours, before, after)))
    for count in range(1, MAX_NEIGHBOURS + 1):
        for ends, words in (((count, 0), "before"), ((0, count), "after")):
            bug = f"each block sees {count} token{'s' * (count > 1)} {words} it too"
            found.append(Bug(bug, EVERYWHERE, blocks=partial(longer_keys, *ends, T)))
    for window in sorted({half, K - 1, K} - {0}):
        bug = f"tokens see a window of {window} tokens on both sides, not a block"
        found.append(Bug(bug, EVERYWHERE, partial(banded, window), one_block))
    found += [
        Bug("tokens see all tokens: there are no blocks", EVERYWHERE, blocks=one_block, sees_filling=True),
        Bug("tokens see global tokens only", part=only_globals),
        Bug("attention within blocks is causal", part=causal),
    ]
    return found


def block_alternatives(T: int, K: int, staggered: bool) -> dict[str, list[Places]]:
    """List wrong ways to split tokens into blocks, each with the places of every block's tokens.

    Args:
        T: number of tokens.
        K: block size.
        staggered: whether the layer's blocks should be staggered.
    """
    half = K // 2
    bug = "blocks are not staggered" if staggered else "blocks are staggered"
    found = {bug: padded_blocks(0 if staggered else half, T, K)}
    for size in sorted({K // 4, half, K - 2, K - 1, K + 1, K + 2, 2 * K}):
        if size >= 1:
            found[f"blocks have {size} tokens, not {K}"] = padded_blocks(size // 2 if staggered else 0, T, size)
    step = max(K // 16, 1)
    for first in sorted({n for n in range(1, K) if n % step in {0, 1, 2, step - 1, step - 2} or n < 8}):
        if first != half:
            right = half if staggered else K
            found[f"the first block has {first} tokens, not {right}"] = padded_blocks(K - first, T, K)
    if not staggered:
        return found
    num_padded = -(-T // K) * K
    wrapped = (np.arange(num_padded) - half) % num_padded
    found["blocks wrap around: the first one joins both ends"] = list(np.where(wrapped < T, wrapped, -1).reshape(-1, K))
    return found


def other_blocks(places: list[Places], filled: bool, _: list[Block]) -> list[Block]:
    """Return other blocks, filled with zeros or not."""
    return [Block(p, p) for p in (places if filled else [p[p >= 0] for p in places])]


def moved_keys(step: int, wraps: bool, T: int, blocks: list[Block]) -> list[Block]:
    """Let the keys of each block start earlier, or later where the step is negative."""
    if wraps:
        keys = np.roll(np.concatenate([block.keys for block in blocks]), step)
        sizes = np.cumsum([len(block.keys) for block in blocks])[:-1]
        return [Block(b.queries, k) for b, k in zip(blocks, np.split(keys, sizes), strict=True)]
    found = []
    for block in blocks:
        start = block.keys[block.keys >= 0][0] - np.flatnonzero(block.keys >= 0)[0] if (block.keys >= 0).any() else T
        keys = start - step + np.arange(len(block.keys))
        found.append(Block(block.queries, np.where((keys >= 0) & (keys < T), keys, -1)))
    return found


def with_neighbours(before: int, after: int, blocks: list[Block]) -> list[Block]:
    """Let each block see its neighbours' keys."""
    return [
        Block(block.queries, np.concatenate([other.keys for other in blocks[max(n - before, 0) : n + after + 1]]))
        for n, block in enumerate(blocks)
    ]


def longer_keys(before: int, after: int, T: int, blocks: list[Block]) -> list[Block]:
    """Let each block see a few more keys."""
    found = []
    for block in blocks:
        keys = block.keys[block.keys >= 0]
        if keys.size:
            keys = np.arange(max(keys[0] - before, 0), min(keys[-1] + after + 1, T))
        found.append(Block(block.queries, keys))
    return found


def one_block(blocks: list[Block]) -> list[Block]:
    """Join all blocks."""
    return [Block(*map(np.concatenate, zip(*blocks, strict=True)))]


def banded(window: int, streams: Streams) -> Streams:
    """Let each token see those at most so far away."""
    places = np.arange(streams.k.shape[2])
    band = np.abs(places[:, None] - places) <= window
    return streams._replace(visible=streams.visible & band)


def globals_last(scores: np.ndarray, part: Part) -> np.ndarray:
    """Move the global tokens behind the other keys."""
    return np.roll(right_mask(scores, part), -part.num_globals, axis=-1)


def with_values_reordered(probs: np.ndarray, part: Part) -> np.ndarray:
    """Weigh values in the order tokens, globals."""
    found: np.ndarray = probs @ np.roll(part.v, -part.num_globals, axis=2)
    return found


def only_globals(part: Part) -> Part:
    """Mask all tokens."""
    return part._replace(visible=part.visible & part.is_global)


def causal(part: Part) -> Part:
    """Mask keys after the query."""
    is_global = np.full((len(part.block.queries), part.num_globals), True)
    is_earlier = part.block.keys <= part.block.queries[:, None]
    return part._replace(visible=part.visible & np.concatenate([is_global, is_earlier], axis=1))
