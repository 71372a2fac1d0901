"""Faults inside attention: scores, softmax, values."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from faults.fault import FINE, GLOBAL, LAYER_0, LAYER_1, LOCAL, LOW, ROOT, Fault
from faults.injection import (
    altered,
    attribute,
    piece,
    rewritten,
    softmax,
    torch,
)


def distances(mask: Any) -> Any:
    """Compute what ALiBi adds to the scores."""
    places = torch.arange(mask.shape[-1], dtype=torch.float64)
    return (0.1 * (places[None] - places[:, None])).to(mask.dtype)


def slopes(mask: Any) -> Any:
    """Return ALiBi's slopes of four heads, in units of `distances`."""
    return (-10 * 2.0 ** (-2 * torch.arange(1.0, 5.0, dtype=torch.float64)))[:, None, None].to(mask.dtype)


def cached(update: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """Replace the cache by one that returns other keys and values than those that were added."""
    return lambda _: SimpleNamespace(update=lambda k, v, layer: update(k, v))


def other_heads(x: Any) -> Any:
    """Give each head every fourth feature, instead of adjacent ones."""
    return x.unflatten(-1, (8, 4)).transpose(-1, -2).flatten(-2)


SCORES = [
    Fault(
        "scores are not scaled",
        f"{LAYER_1}.self_attn.local.0.scores",
        attribute(f"{LAYER_1}.self_attn", "scaling", 1.0),
        diagnosis="scores are not scaled",
    ),
    Fault(
        "scores are scaled twice",
        "decoder.layers.0.self_attn.scores",
        attribute("decoder.layers.0.self_attn", "scaling", 1 / 8),
        diagnosis="the scale is applied twice: division by the head width, not by its root",
    ),
    Fault(
        "scores are scaled by sqrt(D)",
        "decoder.layers.1.encoder_attn.scores",
        attribute("decoder.layers.1.encoder_attn", "scaling", 1 / ROOT),
        diagnosis="scores are divided by sqrt(D), not by the root of the head width",
    ),
    Fault(
        "a scale of 1.0001",
        "decoder.layers.0.encoder_attn.scores",
        attribute("decoder.layers.0.encoder_attn", "scaling", 1.0001 * 8**-0.5),
        seen_in=FINE,
        diagnosis="scores are 1.0001 times what they should be",
    ),
    Fault(
        "the queries of global tokens are 5 percent too large",
        f"{LAYER_1}.self_attn.global.scores",
        altered(f"{LAYER_1}.self_attn", GLOBAL, global_q=lambda q: q * 1.05),
        diagnosis="scores are 1.05 times what they should be",
    ),
    Fault(
        "scores are capped at 10",
        f"{LAYER_0}.self_attn.global.scores",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("attn_weights + extended_mask", "10 * torch.tanh(attn_weights / 10) + extended_mask"),
            method=GLOBAL,
        ),
        diagnosis="scores are capped at 10 by tanh",
    ),
    Fault(
        "the distance is added to scores (ALiBi)",
        "decoder.layers.1.self_attn.scores",
        altered("decoder.layers.1.self_attn", attention_mask=lambda mask: mask + distances(mask)),
        diagnosis="the distance from query to key times 0.1 is added to scores",
    ),
    Fault(
        "scores are multiplied by sqrt(F)",
        "decoder.layers.0.self_attn.scores",
        attribute("decoder.layers.0.self_attn", "scaling", 8**0.5),
        diagnosis="scores are multiplied by sqrt(F), not divided by it",
    ),
    Fault(
        "softmax is to the base 2",
        "decoder.layers.1.encoder_attn.scores",
        attribute("decoder.layers.1.encoder_attn", "scaling", 8**-0.5 * math.log(2)),
        diagnosis="softmax is to the base 2",
    ),
    Fault(
        "the scale of exp2 is used with exp",
        "decoder.layers.0.encoder_attn.scores",
        attribute("decoder.layers.0.encoder_attn", "scaling", 8**-0.5 * math.log2(math.e)),
        diagnosis="scores are multiplied by log2(e) for exp2, but exp is taken",
    ),
    Fault(
        "a temperature in blocks",
        f"{LAYER_0}.self_attn.local.0.scores",
        altered(f"{LAYER_0}.self_attn", LOCAL, local_q=lambda q: q * 0.7),
        diagnosis="scores are 0.7 times what they should be",
    ),
    Fault(
        "scores are clipped at 3",
        f"{LAYER_1}.self_attn.global.scores",
        rewritten(
            f"{LAYER_1}.self_attn",
            piece("attn_weights + extended_mask", "attn_weights.clamp(-3, 3) + extended_mask"),
            method=GLOBAL,
        ),
        diagnosis="scores are clipped at 3",
    ),
    Fault(
        "each head has a slope of ALiBi",
        "decoder.layers.0.self_attn.scores",
        altered("decoder.layers.0.self_attn", attention_mask=lambda mask: mask + slopes(mask) * distances(mask).abs()),
        diagnosis="scores have a position bias (ALiBi)",
    ),
    Fault(
        "the absolute distance is subtracted from scores",
        f"{LAYER_0}.self_attn.local.0.scores",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("nn.functional.softmax(attn_weights,", "nn.functional.softmax(attn_weights + bias(attn_weights),"),
            method=LOCAL,
            bias=lambda scores: torch.nn.functional.pad(-0.5 * distances(scores[..., 4:]).abs(), (4, 0)),
        ),
        diagnosis="the absolute distance of query and key times -0.05 is added to scores",
    ),
    Fault(
        "heads take their features in another order",
        f"{LAYER_0}.self_attn.local.0.scores",
        altered(f"{LAYER_0}.self_attn", "_shape", tensor=other_heads),
        diagnosis="queries, keys and values are split into heads as (F, H), not (H, F)",
    ),
    Fault(
        "the keys are another head's",
        f"{LAYER_0}.self_attn.global.scores",
        altered(f"{LAYER_0}.self_attn", GLOBAL, global_k=lambda k: k.roll(1, 1), local_k=lambda k: k.roll(1, 1)),
        diagnosis="queries and keys are of different heads",
    ),
    Fault(
        "the cache returns keys of another batch row",
        "decoder.layers.1.self_attn.scores",
        altered("decoder.layers.1.self_attn", past_key_values=cached(lambda k, v: (k.roll(1, 0), v))),
        diagnosis="keys are of the previous batch row",
    ),
    Fault(
        "the cache returns keys in the reverse order",
        "decoder.layers.0.self_attn.scores",
        altered("decoder.layers.0.self_attn", past_key_values=cached(lambda k, v: (k.flip(2), v))),
        diagnosis="keys are in the reverse order",
    ),
]

SOFTMAX = [
    Fault(
        "softmax runs over the queries",
        f"{LAYER_0}.self_attn.global.probs",
        rewritten(f"{LAYER_0}.self_attn", piece("dim=-1", "dim=-2", times=1), method=GLOBAL),
        diagnosis="softmax runs over the queries",
    ),
    Fault(
        "softmax is taken twice",
        f"{LAYER_0}.self_attn.local.0.probs",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("nn.functional.softmax", "twice"),
            method=LOCAL,
            twice=softmax(lambda x: x.softmax(-1).softmax(-1)),
        ),
        diagnosis="softmax is taken twice",
    ),
    Fault(
        "softmax is a sigmoid",
        f"{LAYER_1}.self_attn.global.probs",
        rewritten(
            f"{LAYER_1}.self_attn",
            piece("nn.functional.softmax", "sigmoid"),
            method=GLOBAL,
            sigmoid=softmax(torch.sigmoid),
        ),
        diagnosis="softmax is a sigmoid",
    ),
    Fault(
        "softmax does not subtract the maximum, and overflows",
        f"{LAYER_0}.self_attn.global.probs",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("nn.functional.softmax", "quotient"),
            method=GLOBAL,
            quotient=softmax(lambda x: x.exp() / x.exp().sum(-1, keepdim=True)),
        ),
        seen_in=LOW,
        config={"init_std": 1.0},
        diagnosis="softmax does not subtract the maximum: exp overflows",
    ),
]

VALUES = [
    Fault(
        "the values are another head's",
        f"{LAYER_0}.self_attn.global.context",
        altered(f"{LAYER_0}.self_attn", GLOBAL, global_v=lambda v: v.roll(1, 1), local_v=lambda v: v.roll(1, 1)),
        diagnosis="probabilities and values are of different heads",
    ),
    Fault(
        "the values are in the reverse order",
        "decoder.layers.0.self_attn.context",
        altered("decoder.layers.0.self_attn", past_key_values=cached(lambda k, v: (k, v.flip(2)))),
        diagnosis="values are in the reverse order",
    ),
    Fault(
        "keys are used as values",
        "decoder.layers.1.encoder_attn.context",
        altered("decoder.layers.1.encoder_attn", past_key_values=cached(lambda k, v: (k, k))),
        diagnosis="keys are used as values",
    ),
    Fault(
        "heads are merged without a transposition",
        f"{LAYER_0}.self_attn.global.context",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("global_attn_output.transpose(1, 2).contiguous()", "global_attn_output.contiguous()"),
        ),
        diagnosis="heads are merged without the transposition from (B, H, T, F) to (B, T, H, F)",
    ),
]
