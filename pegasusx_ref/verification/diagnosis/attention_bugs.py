"""Known bugs inside attention, tried at any of its tensors: those before it that are not shown are computed too."""

import re
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.verification.checking.comparison import ratio
from pegasusx_ref.verification.diagnosis.attention_inputs import NAME, Attention
from pegasusx_ref.verification.diagnosis.attention_steps import (
    NO_BUG,
    STEPS,
    Block,
    Bug,
    Streams,
    all_contexts,
    block_result,
)
from pegasusx_ref.verification.diagnosis.block_bugs import block_bugs
from pegasusx_ref.verification.diagnosis.cache_bugs import cache_bugs
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, Variants
from pegasusx_ref.verification.diagnosis.head_bugs import head_bugs
from pegasusx_ref.verification.diagnosis.mask_bugs import mask_bugs
from pegasusx_ref.verification.diagnosis.score_bugs import score_bugs
from pegasusx_ref.verification.diagnosis.softmax_bugs import probability_bugs
from pegasusx_ref.verification.verdicts import WARN, Failure

UNLIKELY = 1_000_000  # added to the numbers of variants that are tried last
ALIKE = 0.5  # the relative error up to which a later tensor confirms a bug

Key = tuple[str, str, int]  # the tensor that a bug is in, the bug in words, and the number of the variant
LocatedVariants = dict[Key, Callable[[], np.ndarray]]


class LocatedAttention:
    """The variants of a failed operation of attention, by the step that the bug is in.

    Args:
        op: the operation: scores, softmax, weighted sum or output projection.
    """

    def __init__(self, op: FailedOperation) -> None:
        self.op, self.attention = op, Attention(op)
        self.until = self.attention.step if self.attention.step in STEPS else "context"
        self.is_output = self.attention.step not in STEPS
        part = {"tokens": f"local.{'*' if self.is_output else self.attention.block}.", "globals": "global."}
        self.where = f"{self.attention.place}.{part.get(self.attention.kind, '')}{{}}"

    def bugs(self) -> list[Bug]:
        """List all bugs that may be here: those that later tensors confirm first, then the specific ones."""
        lists = (score_bugs, mask_bugs, block_bugs, probability_bugs, head_bugs, cache_bugs)
        return sorted((bug for bugs in lists for bug in bugs(self.attention)), key=lambda bug: not bug.extends)

    def variants(self, bugs: Iterable[Bug], blocks: set[int] | None = None) -> "dict[Key, partial[np.ndarray]]":
        """Compute the failed tensor with each bug.

        Args:
            bugs: to try.
            blocks: the blocks with the bug, if it is not in all.

        Returns:
            By the tensor that the bug is in, its name, and the number of the variant: from UNLIKELY on where the bug's
            first step is shown and may be right.
        """
        first, fillings = self.first_hidden_step(), self.attention.fillings()
        found, later = dict[Key, "partial[np.ndarray]"](), dict[Key, "partial[np.ndarray]"]()
        for number, bug in enumerate(bugs):
            steps = [step for step in bug.steps if first <= STEPS.index(step) <= STEPS.index(self.until)]
            if not steps or (bug.extends and len(steps) < len(bug.steps) and not self.is_confirmed(bug)):
                continue
            for n, filling in enumerate(fillings if bug.sees_filling else [None]):
                key, is_later = len(fillings) * number + n, steps[0] != bug.steps[0]
                target = later if is_later else found
                target[self.where.format(steps[0]), bug.name, key + is_later * UNLIKELY] = partial(
                    self.compute, bug, filling=filling, with_bug=blocks
                )
        return found | later

    def first_hidden_step(self) -> int:
        """Return the index of the first step that may have a bug: the candidate shows those before it."""
        attention = self.attention
        if self.is_output:
            known = [attention.shown_steps(n, "out_proj") for n in range(len(attention.blocks()))]
            known = [steps for steps in known if "context" not in steps] or known
        else:
            known = [attention.shown_steps(attention.block, self.until)]
        return min(STEPS.index(next(iter(steps))) + 1 if steps else 0 for steps in known)

    def in_wrong_blocks(self, failure: Failure) -> LocatedVariants:
        """Compute the output projection with each bug in the blocks that have wrong rows; none where all have."""
        if not (self.is_output and self.attention.kind == "tokens"):
            return {}
        squares, variance = (failure.candidate - failure.estimate.value) ** 2, failure.estimate.allowed().variance
        rho = ratio(np.sqrt(squares.sum(axis=-1)), np.sqrt(variance.sum(axis=-1)))
        is_wrong = ((rho > WARN) & failure.valid).any(axis=0)
        blocks = [block.queries for block in self.attention.blocks()]
        wrong = {n for n, places in enumerate(blocks) if is_wrong[places].any()}
        if len(wrong) == len(blocks) or not wrong:
            return {}
        where = re.compile(r"local\.\*")
        some = f"local.{min(wrong)}" if len(wrong) == 1 else f"local.{{{','.join(map(str, sorted(wrong)))}}}"
        found = self.whole().variants(self.bugs(), wrong)
        return {(where.sub(some, key[0]), *key[1:]): variant for key, variant in found.items()}

    def compute(self, bug: Bug, filling: np.ndarray | None, with_bug: set[int] | None = None) -> np.ndarray:
        """Compute the failed tensor with a bug; empty where the bug cannot be there."""
        if not self.is_output:
            return self.block(bug, filling, self.until)
        attention, streams, blocks = self.attention, self.streams(filling), self.attention.blocks(filling is not None)
        steps = [attention.shown_steps(n, "out_proj") for n in range(len(attention.blocks()))]
        x = all_contexts(bug, streams, blocks, steps, self.op.rows, with_bug)
        if not x.size:
            return x
        counts = ~np.isnan(x).any(axis=(0, 2))
        weight = dense(self.op.settings["weight"], np.float64)
        found = np.full((*x.shape[:2], len(weight)), np.nan)
        found[:, counts] = linear(x[:, counts], weight)
        return found

    def whole(self) -> "LocatedAttention":
        """Return the same for all rows."""
        return LocatedAttention(self.op._replace(rows=None))

    def streams(self, filling: np.ndarray | None) -> Streams:
        """Return queries, keys and values of an attention whose blocks are filled, or not."""
        streams = self.attention.streams
        assert streams is not None
        return streams if filling is None else streams._replace(filling=filling)

    def block(self, bug: Bug, filling: np.ndarray | None, until: str) -> np.ndarray:
        """Compute a step of the failed tensor's block."""
        attention, streams, n = self.attention, self.streams(filling), self.attention.block
        blocks = bug.blocks(attention.blocks(filling is not None))
        if n >= len(blocks) or (bug.blocks is not NO_BUG.blocks and not self.has_sizes(blocks, until)):
            return np.empty(0)
        block, rows = blocks[n], self.op.rows
        if rows is not None:
            rows = block.queries[rows[rows < len(block.queries)]]
        known = attention.shown_steps(n, until)
        found = block_result(bug, bug.streams(streams), block, until, known, rows)
        if (block.queries < 0).any() and found.ndim == 4:
            found = found.copy()
            found[:, :, block.queries < 0] = np.nan
        if attention.kind == "tokens" and found.ndim == 4 and found.shape != self.right_shape:
            found = np.where(attention.layer.source_mask_BT[:, None, block.queries, None], found, np.nan)
        return found

    def has_sizes(self, blocks: list[Block], until: str) -> bool:
        """Return whether all blocks have the sizes that the candidate shows."""
        for n, block in enumerate(blocks):
            x = self.attention.shown(f"local.{n}.{until}")
            num_keys = self.attention.config.num_global_tokens + len(block.keys)
            if x is not None and x.shape[2:] != (len(block.queries), x.shape[3] if until == "context" else num_keys):
                return False
        return True

    def largest_scores(self) -> np.ndarray:
        """Return the largest right score of each query (B, H, S)."""
        attention, streams = self.attention, self.streams(None)
        blocks = attention.blocks()
        if not self.is_output:
            blocks = [blocks[attention.block]]
        found = [block_result(NO_BUG, streams, block, "scores", {}, None).max(axis=-1) for block in blocks]
        return np.concatenate(found, axis=2)

    @property
    def right_shape(self) -> tuple[int, ...]:
        """The right shape of the failed tensor."""
        return self.op.estimate.shape if self.op.estimate is not None else ()

    def is_confirmed(self, bug: Bug) -> bool:
        """Return whether a later tensor of the block agrees with a bug, and not with the right computation."""
        attention = self.attention
        if self.is_output:
            return True
        part = self.where.format("").removeprefix(f"{attention.place}.")
        for step in STEPS[STEPS.index(self.until) + 1 :]:
            if step in bug.steps and (later := attention.shown(f"{part}{step}")) is not None:
                wrong, right = (self.block(b, None, step) for b in (bug, NO_BUG))
                if wrong.shape != later.shape or right.shape != later.shape:
                    return False
                return difference(wrong, later) < ALIKE * difference(right, later)
        return False


def difference(x: np.ndarray, y: np.ndarray) -> float:
    """Return the root mean square of a difference, without NaN."""
    return float(np.sqrt(np.nanmean((x - y) ** 2)))


def own_step(op: FailedOperation, step: str) -> Variants:
    """Compute the result with each bug that is in this step and can be in this tensor."""
    if (located := locate(op)) is None:
        return {}
    bugs = (bug for bug in located.bugs() if bug.steps[0] == step and not bug.extends)
    return {
        bug: variant
        for (_, bug, number), variant in located.variants(bugs).items()
        if number % len(located.attention.fillings()) == 0 and variant().size
    }


def locate(op: FailedOperation) -> LocatedAttention | None:
    """Return the attention of an operation; None where it belongs to none, or too little is shown."""
    if not NAME.fullmatch(op.name) or not op.name.endswith((*STEPS, "out_proj")):
        return None
    located = LocatedAttention(op)
    return located if located.attention.streams is not None else None


def attention_variants(op: FailedOperation) -> LocatedVariants:
    """Compute the result with each bug of its attention; none where the operation belongs to no attention."""
    located = locate(op)
    return {} if located is None else {**located.variants(located.bugs())}


scores_bugs = partial(own_step, step="scores")
softmax_bugs = partial(own_step, step="probs")
weighted_sum_bugs = partial(own_step, step="context")
