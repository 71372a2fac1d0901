"""Faults in the split into heads and in their merge."""

from typing import Any

from faults.attention import cached
from faults.fault import GLOBAL, LAYER_0, LAYER_1, Fault
from faults.injection import all_of, altered, attribute, piece, rewritten


def resplit(x: Any) -> Any:
    """Split (B, H, T, F) into heads as (F, H)."""
    B, H, T, F = x.shape
    return x.transpose(1, 2).reshape(B, T, F, H).permute(0, 3, 1, 2)


def untransposed(x: Any) -> Any:
    """Reshape (B, T, D) to (B, H, T, F)."""
    B, H, T, F = x.shape
    return x.transpose(1, 2).reshape(B, H, T, F)


HEADS = [
    Fault(
        "queries and keys, but not values, have interleaved heads",
        "decoder.layers.0.self_attn.scores",
        rewritten(
            "decoder.layers.0.self_attn",
            piece("view(hidden_shape).transpose(1, 2)", "view(*input_shape, self.head_dim, -1).permute(0, 3, 1, 2)"),
            piece(
                "key_states = key_states.view(kv_shape).transpose(1, 2)",
                "key_states = key_states.view(*kv_shape[:-2], self.head_dim, -1).permute(0, 3, 1, 2)",
            ),
        ),
        diagnosis="queries and keys are split into heads as (F, H), not (H, F)",
    ),
    Fault(
        "values have interleaved heads",
        "decoder.layers.1.self_attn.context",
        altered("decoder.layers.1.self_attn", past_key_values=cached(lambda k, v: (k, resplit(v)))),
        diagnosis="values are split into heads as (F, H), not (H, F)",
    ),
    Fault(
        "keys and values are reshaped without a transposition",
        "decoder.layers.1.encoder_attn.scores",
        altered(
            "decoder.layers.1.encoder_attn", past_key_values=cached(lambda k, v: (untransposed(k), untransposed(v)))
        ),
        diagnosis="keys and values are split into heads without the transposition from (B, T, H, F) to (B, H, T, F)",
    ),
    Fault(
        "all heads use the first one's keys and values (multi-query)",
        "decoder.layers.0.self_attn.scores",
        altered("decoder.layers.0.self_attn", past_key_values=cached(lambda k, v: (k[:, [0] * 4], v[:, [0] * 4]))),
        diagnosis="all heads share keys and values of one head",
    ),
    Fault(
        "two heads share one head's keys and values (grouped queries)",
        f"{LAYER_1}.self_attn.global.scores",
        altered(
            f"{LAYER_1}.self_attn",
            GLOBAL,
            **{name: lambda x: x[:, [0, 0, 2, 2]] for name in ("global_k", "local_k", "global_v", "local_v")},
        ),
        diagnosis="each 2 heads share keys and values of one head",
    ),
    Fault(
        "shared heads are repeated in turn",
        "decoder.layers.1.self_attn.scores",
        altered(
            "decoder.layers.1.self_attn", past_key_values=cached(lambda k, v: (k[:, [0, 1] * 2], v[:, [0, 1] * 2]))
        ),
        diagnosis="head h uses the keys and values of head h modulo 2",
    ),
    Fault(
        "all heads use the first one's values",
        "decoder.layers.0.encoder_attn.context",
        altered("decoder.layers.0.encoder_attn", past_key_values=cached(lambda k, v: (k, v[:, [0] * 4]))),
        diagnosis="all heads share values of one head",
    ),
    Fault(
        "twice as many heads, half as wide",
        "decoder.layers.0.encoder_attn.scores",
        all_of(
            attribute("decoder.layers.0.encoder_attn", "head_dim", 4),
            attribute("decoder.layers.0.encoder_attn", "scaling", 0.5),
        ),
        diagnosis="there are 8 heads of 4 numbers, not 4 of 8",
    ),
    Fault(
        "heads are merged in an interleaved order",
        "decoder.layers.0.self_attn.context",
        rewritten(
            "decoder.layers.0.self_attn",
            piece("attn_output.reshape(*input_shape, -1)", "attn_output.transpose(2, 3).reshape(*input_shape, -1)"),
        ),
        diagnosis="heads are merged as (F, H), not (H, F)",
    ),
    Fault(
        "heads are merged from the last to the first",
        "decoder.layers.1.encoder_attn.context",
        rewritten(
            "decoder.layers.1.encoder_attn",
            piece("attn_output.reshape(*input_shape, -1)", "attn_output.flip(2).reshape(*input_shape, -1)"),
        ),
        diagnosis="heads are merged in the reverse order",
    ),
    Fault(
        "the merge of heads starts with the last one",
        f"{LAYER_0}.self_attn.global.context",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("global_attn_output.transpose(1, 2)", "global_attn_output.roll(1, 1).transpose(1, 2)"),
        ),
        diagnosis="heads are merged one place too late",
    ),
]
