"""Mistakes in where the blocks of an encoder layer begin and end. [spec 8]"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from pegasusx_ref.golden.attention import merge_heads, softmax, split_heads
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.model.encoder import is_staggered
from pegasusx_ref.verification.hypotheses.case import Case, Variants
from pegasusx_ref.verification.layouts import Places, padded_blocks
from pegasusx_ref.verification.operations import LOWEST


class Layer(NamedTuple):
    """The real tokens, and queries, keys and values of one layer."""

    mask_BT: np.ndarray
    q_BHTF: np.ndarray
    k_BHTF: np.ndarray
    v_BHTF: np.ndarray
    global_k_BHGF: np.ndarray
    global_v_BHGF: np.ndarray

    def scores(self, places: Places) -> np.ndarray:
        """Compare the tokens of a block with the global tokens and each other; rows of padding are NaN."""
        keys = np.concatenate([self.global_k_BHGF, self.k_BHTF[:, :, places]], axis=2)
        real_BS = self.mask_BT[:, places] & (places >= 0)
        visible = np.concatenate([np.ones((len(real_BS), self.global_k_BHGF.shape[2]), dtype=bool), real_BS], axis=1)
        scores = (self.q_BHTF[:, :, places] * self.q_BHTF.shape[3] ** -0.5) @ keys.swapaxes(2, 3)
        scores = np.where(visible[:, None, None], scores, LOWEST)
        return np.where(real_BS[:, None, :, None], scores, np.nan)

    def context(self, places: Places) -> np.ndarray:
        """Attend within a block."""
        values = np.concatenate([self.global_v_BHGF, self.v_BHTF[:, :, places]], axis=2)
        found: np.ndarray = softmax(self.scores(places)) @ values
        return found

    def all_contexts(self, cut: list[Places]) -> np.ndarray:
        """Attend within every block (B, T, D)."""
        found = np.empty_like(self.q_BHTF)
        for places in (block[block >= 0] for block in cut):
            found[:, :, places] = self.context(places)
        return merge_heads(found)


def other_blocks(case: Case) -> Variants:
    """Give a block's scores or context, or out_proj of all blocks, where the layer is cut in another way.

    Nothing, where the layer's queries, keys and values are not all known.
    """
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.(?:local\.(\d+)\.)?(tokens\.)?(\w+)", case.name)
    layer = match and layer_around(case, match.group(1))
    if match is None or layer is None:
        return {}
    number, block, _, what = match.groups()
    T, K = layer.q_BHTF.shape[2], case.around.config.block_size
    alternatives = cuts(T, K, is_staggered(case.around.config, int(number)))
    if what == "out_proj":
        weight = case.settings["weight"]

        def project(cut: list[Places]) -> np.ndarray:
            return linear(layer.all_contexts(cut), weight)

        return {mistake: partial(project, cut) for mistake, cut in alternatives.items() if few(mistake)}
    compute: Callable[[Places], np.ndarray] = layer.scores if what == "scores" else layer.context
    shown = sizes_of_blocks(case, what)
    found: Variants = {}
    for mistake, cut in alternatives.items():
        if not (shown or few(mistake)):
            continue
        for blocks in (cut, [places[places >= 0] for places in cut]):
            if int(block) < len(blocks) and shown == [len(places) for places in blocks[: len(shown)]]:
                found[mistake] = partial(compute, blocks[int(block)])
    return found


def layer_around(case: Case, number: str) -> Layer | None:
    """Collect what a layer attends with, as far as the candidate shows it."""
    H = case.around.config.encoder_attention_heads
    names = ("tokens.q_proj", "tokens.k_proj", "tokens.v_proj", "globals.k_proj", "globals.v_proj")
    given = (case.around.tensors.get(f"encoder.layers.{number}.self_attn.{name}") for name in names)
    heads = [split_heads(x.astype(np.float64), H) for x in given if x is not None]
    return Layer(case.around.source_mask_BT, *heads) if len(heads) == len(names) else None


def sizes_of_blocks(case: Case, what: str) -> list[int]:
    """Count the rows of each block that the candidate shows."""
    place, sizes = case.name.rpartition(".local.")[0], list[int]()
    while (x := case.around.tensors.get(f"{place}.local.{len(sizes)}.{what}")) is not None:
        sizes.append(x.shape[2] if x.ndim == 4 else -1)
    return sizes


def cuts(T: int, K: int, staggered: bool) -> dict[str, list[Places]]:
    """List other ways to cut tokens into blocks: for each, the places of every block's tokens.

    Args:
        T: number of tokens.
        K: block size.
        staggered: whether the layer's blocks should be.
    """
    half = K // 2
    what = "blocks are not staggered" if staggered else "blocks are staggered"
    found = {what: padded_blocks(0 if staggered else half, T, K)}
    for size in sorted({half, K - 2, K - 1, K + 1, K + 2, 2 * K}):
        if size < 1:
            continue
        found[f"blocks have {size} tokens, not {K}"] = padded_blocks(size // 2 if staggered else 0, T, size)
    if not staggered:
        return found
    for first in range(1, K):
        if first != half:
            found[f"the first block has {first} tokens, not {half}"] = padded_blocks(K - first, T, K)
    num_padded = -(-T // K) * K
    around = (np.arange(num_padded) - half) % num_padded
    found["blocks wrap around: the first one joins both ends"] = list(np.where(around < T, around, -1).reshape(-1, K))
    return found


def few(mistake: str) -> bool:
    """Tell the mistakes that are tried on a whole layer: not each possible size of the first block."""
    return not mistake.startswith("the first block")
