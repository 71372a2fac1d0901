"""Known bugs in the split into heads and in their merge. [spec 16]"""

from collections.abc import Callable
from functools import partial

import numpy as np

from pegasusx_ref.golden.attention import merge_heads, split_heads
from pegasusx_ref.verification.diagnosis.attention_inputs import Attention
from pegasusx_ref.verification.diagnosis.attention_steps import Bug, Part, Streams

Change = Callable[[np.ndarray], np.ndarray]
MERGED = "heads are merged without the transposition from (B, H, T, F) to (B, T, H, F)"


def head_bugs(attention: Attention) -> list[Bug]:
    """List wrong splits into heads, wrong orders of heads, and wrong merges."""
    H = attention.num_heads
    F = attention.config.d_model // H
    found = [
        *by_streams("split into heads as (F, H), not (H, F)", resplit),
        *by_streams("split into heads without the transposition from (B, T, H, F) to (B, H, T, F)", untransposed),
        Bug("heads are merged as (F, H), not (H, F)", ("context",), context=merging(remerged)),
        Bug(
            "heads are split and merged as (F, H), not (H, F)",
            ("scores", "context"),
            streams=partial(changed, "qkv", resplit),
            context=merging(remerged),
            extends=True,
        ),
    ]
    if attention.kind != "tokens" and attention.step != "out_proj":  # there, MERGED is a bug of the projection
        found.append(Bug(MERGED, ("context",), context=merging(merged_untransposed), needs_all_rows=True))
    if H == 1:
        return found
    found += [
        Bug(
            "queries and keys are of different heads",
            streams=partial(changed, "k", partial(of_heads, np.arange(H) - 1)),
        ),
        Bug(
            "probabilities and values are of different heads",
            ("context",),
            streams=partial(changed, "v", partial(of_heads, np.arange(H) - 1)),
        ),
    ]
    for bug, order in (("in the reverse order", np.arange(H)[::-1]), ("one place too late", np.arange(H) - 1)):
        found.append(Bug(f"heads are merged {bug}", ("context",), context=merging(partial(of_heads, order))))
    for size in (divisor for divisor in range(2, H + 1) if H % divisor == 0):
        shares = f"{'all heads share' if size == H else f'each {size} heads share'} {{}} of one head"
        for parts, words in (("kv", "keys and values"), ("k", "keys"), ("v", "values")):
            found.append(of_streams(parts, shares.format(words), partial(of_heads, np.arange(H) // size * size)))
        if 1 < H // size < H:
            order = np.arange(H) % (H // size)
            bug = f"head h uses the keys and values of head h modulo {H // size}"
            found.append(of_streams("kv", bug, partial(of_heads, order)))
    for other in sorted({F, H // 2, 2 * H} - {H, 0}):
        if attention.config.d_model % other == 0:
            width = attention.config.d_model // other
            bug = f"there are {other} heads of {width} numbers, not {H} of {F}"
            found.append(Bug(bug, ("scores", "context"), streams=partial(changed, "qkv", partial(split_again, other))))
    return found


def by_streams(bug: str, change: Change) -> list[Bug]:
    """List a bug in queries, keys and values, and in some of them."""
    subjects = {"qkv": "queries, keys and values", "kv": "keys and values", "qk": "queries and keys"}
    subjects |= {"k": "keys", "q": "queries", "v": "values"}
    return [of_streams(parts, f"{words} are {bug}", change) for parts, words in subjects.items()]


def of_streams(parts: str, bug: str, change: Change) -> Bug:
    """Build a bug that changes some of queries, keys and values."""
    steps = [step for step, of in (("scores", "qk"), ("context", "v")) if set(parts) & set(of)]
    return Bug(bug, tuple(steps), partial(changed, parts, change), extends=len(steps) > 1)


def changed(parts: str, change: Change, streams: Streams) -> Streams:
    """Change some of queries, keys and values, those of global tokens too."""
    fields = [field for part in parts for field in ((part,) if part == "q" else (part, f"global_{part}"))]
    return streams._replace(**{field: change(getattr(streams, field)) for field in fields})


def merging(change: Change) -> Callable[[np.ndarray, Part], np.ndarray]:
    """Return a function that computes the weighted sum and changes it."""
    return lambda probs, part: change(probs @ part.v)


def of_heads(order: np.ndarray, x_BHTF: np.ndarray) -> np.ndarray:
    """Select heads."""
    return x_BHTF[:, order]


def resplit(x_BHTF: np.ndarray) -> np.ndarray:
    """Split into heads as (F, H) instead of (H, F)."""
    B, H, T, F = x_BHTF.shape
    return merge_heads(x_BHTF).reshape(B, T, F, H).transpose(0, 3, 1, 2)


def remerged(x_BHTF: np.ndarray) -> np.ndarray:
    """Merge heads as (F, H), and split them as (H, F)."""
    B, H, T, F = x_BHTF.shape
    return split_heads(x_BHTF.transpose(0, 2, 3, 1).reshape(B, T, F * H), H)


def split_again(num_heads: int, x_BHTF: np.ndarray) -> np.ndarray:
    """Split into another number of heads."""
    return split_heads(merge_heads(x_BHTF), num_heads)


def untransposed(x_BHTF: np.ndarray) -> np.ndarray:
    """Reshape from (B, T, D) to (B, H, T, F), without the transposition."""
    B, H, T, F = x_BHTF.shape
    return merge_heads(x_BHTF).reshape(B, H, T, F)


def merged_untransposed(x_BHTF: np.ndarray) -> np.ndarray:
    """Reshape from (B, H, T, F) to (B, T, D), without the transposition, and split into heads."""
    B, H, T, F = x_BHTF.shape
    return split_heads(x_BHTF.reshape(B, T, H * F), H)
