"""Known bugs in the bounds of an encoder layer's blocks. [spec 8]"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from pegasusx_ref.golden.attention import merge_heads, softmax, split_heads
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.model.encoder import is_staggered
from pegasusx_ref.verification.known_bugs.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.operations import LOWEST
from pegasusx_ref.verification.transformers_layout import Places, padded_blocks


class AttentionInputs(NamedTuple):
    """The source mask, and queries, keys and values of one layer."""

    mask_BT: np.ndarray
    q_BHTF: np.ndarray
    k_BHTF: np.ndarray
    v_BHTF: np.ndarray
    global_k_BHGF: np.ndarray
    global_v_BHGF: np.ndarray

    def scores(self, places: Places) -> np.ndarray:
        """Compute the scores of a block; rows of padding are NaN."""
        keys = np.concatenate([self.global_k_BHGF, self.k_BHTF[:, :, places]], axis=2)
        real_BS = self.mask_BT[:, places] & (places >= 0)
        visible = np.concatenate([np.ones((len(real_BS), self.global_k_BHGF.shape[2]), dtype=bool), real_BS], axis=1)
        scores = (self.q_BHTF[:, :, places] * self.q_BHTF.shape[3] ** -0.5) @ keys.swapaxes(2, 3)
        scores = np.where(visible[:, None, None], scores, LOWEST)
        return np.where(real_BS[:, None, :, None], scores, np.nan)

    def context(self, places: Places) -> np.ndarray:
        """Compute the context of a block."""
        values = np.concatenate([self.global_v_BHGF, self.v_BHTF[:, :, places]], axis=2)
        found: np.ndarray = softmax(self.scores(places)) @ values
        return found

    def all_contexts(self, blocks: list[Places]) -> np.ndarray:
        """Compute the context of all blocks (B, T, D)."""
        found = np.empty_like(self.q_BHTF)
        for places in (block[block >= 0] for block in blocks):
            found[:, :, places] = self.context(places)
        return merge_heads(found)


def other_blocks(op: FailedOperation) -> Variants:
    """Compute a block's scores or context, or out_proj of all blocks, with other block bounds.

    Returns nothing where the candidate does not show all queries, keys and values of the layer.
    """
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.(?:local\.(\d+)\.)?(tokens\.)?(\w+)", op.name)
    inputs = match and attention_inputs(op, match.group(1))
    if match is None or inputs is None:
        return {}
    number, block, _, what = match.groups()
    T, K = inputs.q_BHTF.shape[2], op.layer.config.block_size
    alternatives = block_alternatives(T, K, is_staggered(op.layer.config, int(number)))
    if what == "out_proj":
        weight = op.settings["weight"]

        def project(blocks: list[Places]) -> np.ndarray:
            return linear(inputs.all_contexts(blocks), weight)

        return {bug: partial(project, blocks) for bug, blocks in alternatives.items() if is_common(bug)}
    compute: Callable[[Places], np.ndarray] = inputs.scores if what == "scores" else inputs.context
    sizes = shown_block_sizes(op, what)
    found: Variants = {}
    for bug, padded in alternatives.items():
        if not (sizes or is_common(bug)):
            continue
        for blocks in (padded, [places[places >= 0] for places in padded]):
            if int(block) < len(blocks) and sizes == [len(places) for places in blocks[: len(sizes)]]:
                found[bug] = partial(compute, blocks[int(block)])
    return found


def attention_inputs(op: FailedOperation, number: str) -> AttentionInputs | None:
    """Collect queries, keys and values of a layer; None where the candidate does not show them all."""
    H = op.layer.config.encoder_attention_heads
    names = ("tokens.q_proj", "tokens.k_proj", "tokens.v_proj", "globals.k_proj", "globals.v_proj")
    shown = (op.layer.tensors.get(f"encoder.layers.{number}.self_attn.{name}") for name in names)
    heads = [split_heads(x.astype(np.float64), H) for x in shown if x is not None]
    return AttentionInputs(op.layer.source_mask_BT, *heads) if len(heads) == len(names) else None


def shown_block_sizes(op: FailedOperation, what: str) -> list[int]:
    """Return the number of rows of each block that the candidate shows."""
    place, sizes = op.name.rpartition(".local.")[0], list[int]()
    while (x := op.layer.tensors.get(f"{place}.local.{len(sizes)}.{what}")) is not None:
        sizes.append(x.shape[2] if x.ndim == 4 else -1)
    return sizes


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
    wrapped = (np.arange(num_padded) - half) % num_padded
    found["blocks wrap around: the first one joins both ends"] = list(np.where(wrapped < T, wrapped, -1).reshape(-1, K))
    return found


def is_common(bug: str) -> bool:
    """Return whether a bug is also tried where no block is shown: not every size of the first block is."""
    return not bug.startswith("the first block")
