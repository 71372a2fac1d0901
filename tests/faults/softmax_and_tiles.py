"""Faults in the softmax and in what fused kernels make of it."""

from typing import Any

from faults.attending import attending, lowest, tiled
from faults.fault import FINE, GLOBAL, LAYER_0, LAYER_1, LOCAL, Fault
from faults.injection import piece, rewritten, softmax, torch


def masked(scores: Any, keys: Any) -> Any:
    """Compute probabilities without some keys."""
    scores = scores.clone()
    scores[..., keys] = lowest(scores)
    return scores.softmax(-1)


def exponentials(scores: Any, less: Any = None) -> Any:
    return (scores - (scores.amax(-1, keepdim=True) if less is None else less)).exp()


def with_epsilon(scores: Any, epsilon: float) -> Any:
    """Add a number to the sum of the softmax."""
    found = exponentials(scores)
    return found / (found.sum(-1, keepdim=True) + epsilon)


def tile_maximum(scores: Any, tile: int) -> Any:
    """Return for each key the maximum of its tile and those before it."""
    last = (tiled(tile, scores.shape[-1]) + tile).clamp(max=scores.shape[-1]) - 1
    return scores.cummax(-1).values[..., last]


def twice_counted(scores: Any, tile: int) -> Any:
    count = scores.shape[-1]
    weighed = exponentials(scores) * (1 + (torch.arange(count) >= (count - 1) // tile * tile).to(scores.dtype))
    return weighed / weighed.sum(-1, keepdim=True)


def apart(scores: Any) -> Any:
    return torch.cat([scores[..., :4].softmax(-1), scores[..., 4:].softmax(-1)], dim=-1)


def rounding(dtype: Any) -> Any:
    return lambda probs, values: probs.to(dtype).to(probs.dtype) @ values


def with_function(place: str, method: str, function: Any) -> Any:
    """Replace the softmax of an encoder layer's attention."""
    return rewritten(place, piece("nn.functional.softmax", "wrong"), method=method, wrong=softmax(function))


SOFTMAX_STEPS = [
    Fault(
        "softmax runs over the heads",
        "decoder.layers.0.self_attn.probs",
        attending("decoder.layers.0.self_attn", normalize=lambda s, _: s.softmax(1)),
        diagnosis="softmax runs over the heads",
    ),
    Fault(
        "softmax is not divided by its sum",
        "decoder.layers.1.self_attn.probs",
        attending("decoder.layers.1.self_attn", normalize=lambda s, _: exponentials(s)),
        diagnosis="softmax is not divided by its sum",
    ),
    Fault(
        "softmax has an extra 1 in its denominator",
        f"{LAYER_1}.self_attn.global.probs",
        with_function(
            f"{LAYER_1}.self_attn",
            GLOBAL,
            lambda s: torch.nn.functional.pad(s, (1, 0)).softmax(-1)[..., 1:],
        ),
        diagnosis="softmax has an extra 1 in its denominator",
    ),
    Fault(
        "0.0001 is added to the sum of the softmax",
        "decoder.layers.0.encoder_attn.probs",
        attending(
            "decoder.layers.0.encoder_attn",
            normalize=lambda s, _: with_epsilon(s.double(), 1e-4).to(s.dtype),
        ),
        diagnosis="0.0001 is added to the sum of the softmax",
        seen_in=FINE,
    ),
    Fault(
        "a block has one softmax for global tokens and one for tokens",
        f"{LAYER_0}.self_attn.local.0.probs",
        with_function(f"{LAYER_0}.self_attn", LOCAL, apart),
        diagnosis="global tokens and tokens have a softmax each",
    ),
    Fault(
        "all visible keys have the same weight",
        "decoder.layers.0.self_attn.probs",
        attending(
            "decoder.layers.0.self_attn",
            normalize=lambda s, _: (s > -1e4).to(s.dtype) / (s > -1e4).to(s.dtype).sum(-1, keepdim=True),
        ),
        diagnosis="probabilities are uniform: the result is the mean of the values",
    ),
    Fault(
        "the keys after the last whole tile are ignored",
        "decoder.layers.1.encoder_attn.probs",
        attending("decoder.layers.1.encoder_attn", normalize=lambda s, _: masked(s, slice(24, None))),
        diagnosis="the keys after the last whole tile of 8 are ignored",
    ),
    Fault(
        "the first key is ignored",
        "decoder.layers.0.encoder_attn.probs",
        attending("decoder.layers.0.encoder_attn", normalize=lambda s, _: masked(s, slice(0, 1))),
        diagnosis="the first key is ignored",
    ),
    Fault(
        "the last key is ignored",
        "decoder.layers.1.encoder_attn.probs",
        attending("decoder.layers.1.encoder_attn", normalize=lambda s, _: masked(s, slice(-1, None))),
        diagnosis="the last key is ignored",
    ),
    Fault(
        "the last tile of keys is counted twice",
        "decoder.layers.0.encoder_attn.probs",
        attending("decoder.layers.0.encoder_attn", normalize=lambda s, _: twice_counted(s, 16)),
        diagnosis="the last tile of 16 keys is counted twice",
    ),
    Fault(
        "an online softmax does not rescale its sum",
        "decoder.layers.1.encoder_attn.probs",
        attending(
            "decoder.layers.1.encoder_attn",
            normalize=lambda s, _: (
                exponentials(s, tile_maximum(s, 8)) / exponentials(s, tile_maximum(s, 8)).sum(-1, keepdim=True)
            ),
        ),
        diagnosis="the sum is not rescaled when a tile of 8 keys raises the maximum",
    ),
    Fault(
        "an online softmax does not rescale its output",
        f"{LAYER_0}.self_attn.global.probs",
        with_function(
            f"{LAYER_0}.self_attn",
            GLOBAL,
            lambda s: exponentials(s, tile_maximum(s, 16)) / exponentials(s).sum(-1, keepdim=True),
        ),
        diagnosis="the output is not rescaled when a tile of 16 keys raises the maximum",
    ),
    Fault(
        "probabilities are rounded to bfloat16",
        "decoder.layers.1.self_attn.context",
        attending("decoder.layers.1.self_attn", weigh=rounding(torch.bfloat16)),
        diagnosis="probabilities are rounded to bfloat16 before the weighted sum",
        seen_in=FINE,
    ),
    Fault(
        "probabilities are rounded to float16",
        "decoder.layers.0.encoder_attn.context",
        attending("decoder.layers.0.encoder_attn", weigh=rounding(torch.float16)),
        diagnosis="probabilities are rounded to float16 before the weighted sum",
        seen_in=FINE,
    ),
    Fault(
        "probabilities are rounded to int8",
        "decoder.layers.0.self_attn.context",
        attending(
            "decoder.layers.0.self_attn",
            weigh=lambda p, v: ((p.double() * 127).round() / 127).to(p.dtype) @ v,
        ),
        diagnosis="probabilities are rounded to int8 before the weighted sum",
    ),
]
