"""Faults in keys and values, as a cache returns them."""

from typing import Any

from faults.attention import cached
from faults.fault import FINE, GLOBAL, LAYER_0, LOCAL, Fault
from faults.injection import Injection, altered, at, piece, rewritten, torch


def rounded(x: Any, dtype: Any) -> Any:
    """Round numbers to a dtype."""
    return x.to(dtype).to(x.dtype)


def int8(x: Any, axes: tuple[int, ...]) -> Any:
    """Round numbers to int8, with one scale along some axes; in float64, so that the dtype adds no error."""
    scale = x.double().abs().amax(axes, keepdim=True) / 127
    return ((x.double() / scale).round() * scale).to(x.dtype)


def late(x: Any) -> Any:
    """Move by one token, with zeros first."""
    return torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], dim=2)


def without_last(x: Any) -> Any:
    """Set the last token's numbers to 0."""
    return torch.cat([x[:, :, :-1], torch.zeros_like(x[:, :, :1])], dim=2)


def of_layer_0(place: str, module: str) -> Injection:
    """Return the keys and values of the first layer from the cache."""

    def inject(model: Any) -> None:
        found: dict[str, Any] = {}
        for part in ("k_proj", "v_proj"):
            source = at(model, f"decoder.layers.0.{module}.{part}")
            source.register_forward_hook(lambda _, __, result, part=part: found.update({part: result}))

        def update(k: Any, v: Any) -> tuple[Any, ...]:
            return tuple(found[part].unflatten(-1, (4, 8)).transpose(1, 2) for part in ("k_proj", "v_proj"))

        altered(place, past_key_values=cached(update))(model)

    return inject


CACHES = [
    Fault(
        "cached keys are stored in bfloat16",
        "decoder.layers.1.self_attn.scores",
        altered("decoder.layers.1.self_attn", past_key_values=cached(lambda k, v: (rounded(k, torch.bfloat16), v))),
        diagnosis="keys are rounded to bfloat16",
        seen_in=FINE,
    ),
    Fault(
        "cached values are stored in float16",
        "decoder.layers.0.encoder_attn.context",
        altered("decoder.layers.0.encoder_attn", past_key_values=cached(lambda k, v: (k, rounded(v, torch.float16)))),
        diagnosis="values are rounded to float16",
        seen_in=FINE,
    ),
    Fault(
        "cached keys and values are stored in int8",
        "decoder.layers.0.self_attn.scores",
        altered("decoder.layers.0.self_attn", past_key_values=cached(lambda k, v: (int8(k, (3,)), int8(v, (3,))))),
        diagnosis="keys and values are rounded to int8 by token and head",
    ),
    Fault(
        "cached values are stored in int8 with a single scale",
        "decoder.layers.1.encoder_attn.context",
        altered("decoder.layers.1.encoder_attn", past_key_values=cached(lambda k, v: (k, int8(v, (0, 1, 2, 3))))),
        diagnosis="values are rounded to int8 as one tensor",
    ),
    Fault(
        "the cache is one step late",
        "decoder.layers.0.self_attn.scores",
        altered("decoder.layers.0.self_attn", past_key_values=cached(lambda k, v: (late(k), late(v)))),
        diagnosis="keys and values are of the previous token: one step late",
    ),
    Fault(
        "cached values are one step late, the keys are not",
        "decoder.layers.1.self_attn.context",
        altered("decoder.layers.1.self_attn", past_key_values=cached(lambda k, v: (k, late(v)))),
        diagnosis="values are of the previous token: one step late",
    ),
    Fault(
        "the cache lacks the last token",
        "decoder.layers.1.encoder_attn.scores",
        altered(
            "decoder.layers.1.encoder_attn", past_key_values=cached(lambda k, v: (without_last(k), without_last(v)))
        ),
        diagnosis="keys and values are 0 for the last token",
    ),
    Fault(
        "the cache returns values of the next batch row",
        "decoder.layers.0.encoder_attn.context",
        altered("decoder.layers.0.encoder_attn", past_key_values=cached(lambda k, v: (k, v.roll(-1, 0)))),
        diagnosis="values are of the next batch row",
    ),
    Fault(
        "blocks see keys and values of the next batch row",
        f"{LAYER_0}.self_attn.local.0.scores",
        altered(f"{LAYER_0}.self_attn", LOCAL, local_k=lambda k: k.roll(-1, 0), local_v=lambda v: v.roll(-1, 0)),
        diagnosis="keys and values are of the next batch row",
    ),
    Fault(
        "keys and values change places in the cache",
        "decoder.layers.1.self_attn.scores",
        altered("decoder.layers.1.self_attn", past_key_values=cached(lambda k, v: (v, k))),
        diagnosis="keys and values are exchanged",
    ),
    Fault(
        "values are used as keys",
        "decoder.layers.0.encoder_attn.scores",
        altered("decoder.layers.0.encoder_attn", past_key_values=cached(lambda k, v: (v, v))),
        diagnosis="values are used as keys",
    ),
    Fault(
        "queries are used as values",
        "decoder.layers.0.self_attn.context",
        rewritten(
            "decoder.layers.0.self_attn",
            piece("value_states,\n        attention_mask", "query_states,\n        attention_mask"),
        ),
        diagnosis="queries are used as values",
    ),
    Fault(
        "cross-attention reads the cache of another layer",
        "decoder.layers.1.encoder_attn.scores",
        of_layer_0("decoder.layers.1.encoder_attn", "encoder_attn"),
        diagnosis="keys and values are projected with the weights of layer 0",
    ),
    Fault(
        "global tokens weigh the next token's values",
        f"{LAYER_0}.self_attn.global.context",
        altered(
            f"{LAYER_0}.self_attn", GLOBAL, local_v=lambda v: torch.cat([v[:, :, :29].roll(-1, 2), v[:, :, 29:]], dim=2)
        ),
        diagnosis="values are of the next token: one step early",
    ),
]
