"""Replacement of the decoder's attention by one with a wrong step."""

from collections.abc import Callable
from typing import Any

from faults.injection import Injection, piece, rewritten, softmax, torch


def attending(
    place: str,
    mask: Callable[[Any, Any], Any] = lambda scores, mask: scores if mask is None else scores + mask,
    normalize: Callable[[Any, Any], Any] = lambda scores, _: scores.softmax(-1),
    weigh: Callable[[Any, Any], Any] = lambda probs, values: probs @ values,
) -> Injection:
    """Replace steps of a decoder attention.

    Args:
        place: an attention of the decoder.
        mask: from scores and mask to masked scores.
        normalize: from masked scores and mask to probabilities.
        weigh: from probabilities and values to the result.
    """

    def attend(module: Any, q: Any, k: Any, v: Any, given: Any, scaling: float, **_: Any) -> Any:
        scores = mask(q @ k.transpose(2, 3) * scaling, given)
        probs = softmax(lambda scores: normalize(scores, given))(scores, dim=-1)
        return weigh(probs, v).transpose(1, 2).contiguous(), probs

    right = "attn_output, attn_weights = attention_interface("
    return rewritten(place, piece(right, right.replace("attention_interface", "attend")), attend=attend)


def lowest(x: Any) -> float:
    """Return the lowest number of a tensor's dtype."""
    return float(torch.finfo(x.dtype).min)


def tiled(tile: int, count: int) -> Any:
    """Return the first key of the tile of each key."""
    return torch.arange(count) // tile * tile
