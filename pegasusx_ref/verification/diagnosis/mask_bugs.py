"""Known bugs in the masks of attention: padding, causality, global tokens. [spec 16]"""

from collections.abc import Callable
from functools import partial

import numpy as np

from pegasusx_ref.golden.attention import causal_mask
from pegasusx_ref.verification.diagnosis.attention_inputs import Attention
from pegasusx_ref.verification.diagnosis.attention_steps import Bug, Part, Streams

NO_PADDING_MASK = "padding keys are not masked: no mask, or one on queries"
MaskChange = Callable[[np.ndarray], np.ndarray]


def mask_bugs(attention: Attention) -> list[Bug]:
    """List wrong masks."""
    streams = attention.streams
    assert streams is not None
    visible, is_causal = streams.visible, attention.kind == "self"
    bug = "the mask is missing" if is_causal else NO_PADDING_MASK
    found = [
        Bug("the padding that fills a block is not masked", part=with_visible_filling, sees_filling=True),
        masking(bug, np.ones_like),
        Bug(bug, part=lambda part: part._replace(visible=np.ones_like(part.visible)), sees_filling=True),
        Bug("the last key is ignored", streams=without_last),
        masking("the mask is inverted", np.logical_not),
        Bug("the mask is inverted", part=inverted, sees_filling=True),
        Bug(
            "the mask multiplies scores: masked scores are 0",
            mask=lambda s, part: s * part.visible[:, None],
            sees_filling=True,
        ),
    ]
    if is_causal:
        found += causal_bugs(visible)
    if attention.is_encoder:
        found += [
            Bug("global tokens are masked as keys", part=without_globals),
            Bug(
                "the mask is not moved past the global tokens, which are the first keys",
                part=unmoved,
                sees_filling=True,
            ),
        ]
    if attention.is_encoder and attention.step == "scores":  # later, they are as good as masked
        found.append(Bug("global tokens are not among the keys", part=cut_globals))
    padding = visible[:, -1]
    if not padding.all():
        found += padding_bugs(attention, padding)
    return found


def masking(bug: str, change: MaskChange) -> Bug:
    """Build a bug in the mask of the keys that are not global tokens."""
    return Bug(bug, streams=lambda streams: streams._replace(visible=change(streams.visible)))


def causal_bugs(visible: np.ndarray) -> list[Bug]:
    """List wrong causal masks; the padding mask, if there is one, is right or missing."""
    L, X = visible.shape[1:]
    padding = visible[:, -1:]
    offsets = {
        1: "the causal mask lets each token see the next one",
        2: "the causal mask lets each token see the next two",
        -1: "the causal mask hides each token from itself",
        -2: "the causal mask hides each token and the one before it",
    }
    masks = {bug: np.tri(L, X, X - L + n, dtype=bool)[None] for n, bug in offsets.items()}
    masks["the causal mask is transposed: tokens see themselves and later ones"] = causal_mask(L, X).swapaxes(1, 2)
    found = [masking(bug, partial(lambda mask, _: mask & padding, mask)) for bug, mask in masks.items()]
    if not padding.all():
        found += [
            masking("the causal mask is missing, the padding mask is right", lambda v: padding & np.ones_like(v)),
            masking(
                "the padding mask is missing, the causal mask is right", lambda v: causal_mask(L, X) & np.ones_like(v)
            ),
        ]
    return found


def padding_bugs(attention: Attention, padding: np.ndarray) -> list[Bug]:
    """List wrong masks of padding (B, X)."""
    streams, config = attention.streams, attention.config
    assert streams is not None
    causal = causal_mask(*streams.visible.shape[1:]) if attention.kind == "self" else True

    def with_padding(bug: str, mask: np.ndarray) -> Bug:
        return masking(bug, lambda visible: (mask[:, None] & causal) & np.ones_like(visible))

    K, G, X = config.block_size, config.num_global_tokens, padding.shape[1]
    steps = {1, 2, *((K // 2, K, G) if attention.kind != "self" else ())}
    found, places = list[Bug](), np.arange(X)
    for step in sorted(n for n in steps if 0 < n < X):
        for sign, side in ((1, "late"), (-1, "early")):
            bug = f"the padding mask is {step} token{'s' * (step > 1)} too {side}"
            edge = padding[:, np.clip(places - sign * step, 0, X - 1)]
            masks = [edge, np.roll(padding, sign * step, axis=1)]  # or moved in a circle
            found += [with_padding(bug, mask) for mask in masks if not mask.all()]
    if len(padding) > 1:
        others = "the padding mask is that of another batch row"
        for order in (np.roll(np.arange(len(padding)), 1), np.roll(np.arange(len(padding)), -1), slice(None, None, -1)):
            found.append(with_padding(others, padding[order]))
        found.append(
            with_padding(
                "the padding mask of the first batch row is used for all", np.repeat(padding[:1], len(padding), 0)
            )
        )
    found.append(with_padding("the padding mask is in the reverse order", padding[:, ::-1]))
    return found


def inverted(part: Part) -> Part:
    """Invert a mask, except for global tokens."""
    return part._replace(visible=~part.visible | part.is_global)


def with_visible_filling(part: Part) -> Part:
    """Let queries see the zeros that fill the block."""
    filling = np.r_[np.full(part.num_globals, False), part.block.keys < 0]
    return part._replace(visible=part.visible | filling)


def without_globals(part: Part) -> Part:
    """Mask the global tokens."""
    return part._replace(visible=part.visible & ~part.is_global)


def cut_globals(part: Part) -> Part:
    """Leave the global tokens out."""
    G = part.num_globals
    return part._replace(k=part.k[:, :, G:], v=part.v[:, :, G:], visible=part.visible[:, :, G:], num_globals=0)


def unmoved(part: Part) -> Part:
    """Put the mask of the tokens first, and that of the global tokens last."""
    return part._replace(visible=np.roll(part.visible, -part.num_globals, axis=2))


def masked_with(constant: float, scores: np.ndarray, part: Part) -> np.ndarray:
    """Set masked scores to a number."""
    return np.where(part.visible[:, None], scores, constant)


def lowered_by(constant: float, scores: np.ndarray, part: Part) -> np.ndarray:
    """Add a number to masked scores."""
    return np.where(part.visible[:, None], scores, scores + constant)


def without_last(streams: Streams) -> Streams:
    """Mask the last key."""
    visible = streams.visible.copy()
    visible[:, :, -1] = False
    return streams._replace(visible=visible)
