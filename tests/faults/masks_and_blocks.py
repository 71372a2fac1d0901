"""Faults in the bounds of blocks and in masks."""

from collections.abc import Callable
from typing import Any

from faults.fault import GLOBAL, LAYER_0, LAYER_1, LOCAL, Fault
from faults.injection import (
    Injection,
    all_of,
    altered,
    attribute,
    combined,
    piece,
    returning,
    rewritten,
    torch,
)


def rotated(_: Any, given: dict[str, Any]) -> Any:
    """Rotate the tokens by K/2, instead of padding both ends with masked zeros."""
    return tuple(given[name].roll(given["block_size"] // 2, 1) for name in ("hidden_states", "attention_mask"))


def rotated_back(_: Any, given: dict[str, Any]) -> Any:
    return given["padded_hidden_states"].roll(-(given["block_size"] // 2), 1)


def blocks_of(size: int, place: str) -> Injection:
    """Pad the tokens to a multiple of another block size, and split them into blocks of that size."""

    def padded(mask: Any) -> Any:
        return torch.nn.functional.pad(mask, (0, -mask.shape[1] % size), value=torch.finfo(mask.dtype).min)

    return all_of(
        attribute(place, "block_size", size),
        returning(place, lambda found, _: (found[0][:, :32], *found[1:])),
        altered(
            place,
            attention_mask=padded,
            token_hidden_states=lambda x: torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % size)),
        ),
    )


def causal_but(diagonal: int) -> Callable[[Any], Any]:
    """Mask from the given diagonal on."""
    return lambda mask: torch.full_like(mask, torch.finfo(mask.dtype).min).triu(diagonal)


def of_real_columns(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change the encoder's mask, except for the padding that fills the last block."""
    return lambda mask: torch.cat([change(mask[:, :29]), mask[:, 29:]], dim=1)


def inverted(mask: Any) -> Any:
    return torch.where(mask == 0, torch.full_like(mask, torch.finfo(mask.dtype).min), 0)


def zero_at(index: Any, x: Any) -> Any:
    x = x.clone()
    x[index] = 0
    return x


def moved(x: Any, start: int, stop: int) -> Any:
    """Rotate a range of the token axis by one."""
    return torch.cat([x[:, :, :start], x[:, :, start:stop].roll(1, 2), x[:, :, stop:]], dim=2)


BLOCKS = [
    Fault(
        "blocks are not staggered",
        f"{LAYER_1}.self_attn.local.0.scores",
        attribute(LAYER_1, "stagger_blocks_this_layer", False),
        diagnosis="blocks are not staggered",
    ),
    Fault(
        "even layers are staggered too",
        f"{LAYER_0}.self_attn.local.0.scores",
        attribute(LAYER_0, "stagger_blocks_this_layer", True),
        diagnosis="blocks are staggered",
    ),
    Fault(
        "blocks are staggered by a quarter of a block",
        f"{LAYER_1}.self_attn.local.0.scores",
        all_of(
            returning(LAYER_1, lambda both, _: tuple(x.roll(-2, 1) for x in both), method="pad_local_tokens"),
            altered(LAYER_1, "unpad_local_tokens", padded_hidden_states=lambda x: x.roll(2, 1)),
        ),
        diagnosis="the first block has 6 tokens, not 4",
    ),
    Fault(
        "staggered blocks wrap around: both ends of the text share one",
        f"{LAYER_1}.self_attn.local.0.scores",
        all_of(
            returning(LAYER_1, rotated, method="pad_local_tokens"),
            returning(LAYER_1, rotated_back, method="unpad_local_tokens"),
        ),
        diagnosis="blocks wrap around: the first one joins both ends",
    ),
    Fault(
        "blocks are one token too long",
        f"{LAYER_0}.self_attn.local.0.scores",
        blocks_of(9, f"{LAYER_0}.self_attn"),
        diagnosis="blocks have 9 tokens, not 8",
    ),
    Fault(
        "the keys of each block start one token too early",
        f"{LAYER_0}.self_attn.local.0.scores",
        altered(
            f"{LAYER_0}.self_attn",
            LOCAL,
            local_k=lambda k: k.roll(1, 2),
            local_v=lambda v: v.roll(1, 2),
            mask=lambda mask: mask.roll(1, 1),
        ),
        diagnosis="the keys of each block start 1 token too early",
    ),
    Fault(
        "the last block, which is not full, is left out",
        f"{LAYER_0}.self_attn.local.3.context",
        returning(
            f"{LAYER_0}.self_attn",
            lambda both, _: (zero_at((..., 3, slice(None), slice(None)), both[0]), both[1]),
            LOCAL,
        ),
        diagnosis="the result is 0: a block is left out",
    ),
    Fault(
        "the values of one block are off by one token",
        f"{LAYER_0}.self_attn.local.1.context",
        altered(f"{LAYER_0}.self_attn", LOCAL, local_v=lambda v: moved(v, 8, 16)),
        diagnosis="the values of the block are one key too late",
    ),
]

MASKS = [
    Fault(
        "padding keys are not masked",
        f"{LAYER_0}.self_attn.local.1.scores",
        altered(LAYER_0, attention_mask=of_real_columns(torch.zeros_like)),
        diagnosis="padding keys are not masked: no mask, or one on queries",
    ),
    Fault(
        "the padding that fills the last block is not masked",
        f"{LAYER_0}.self_attn.local.3.scores",
        altered(LAYER_0, attention_mask=lambda mask: torch.cat([mask[:, :29], 0 * mask[:, 29:]], dim=1)),
        diagnosis="the padding that fills a block is not masked",
    ),
    Fault(
        "padding is masked on queries, not on keys",
        f"{LAYER_0}.self_attn.local.1.scores",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("[:, None, :, None, :]", "[:, None, :, dim.global_len :, None]"),
            method=LOCAL,
        ),
        diagnosis="padding keys are not masked: no mask, or one on queries",
    ),
    Fault(
        "the mask of another batch row",
        f"{LAYER_0}.self_attn.local.1.scores",
        altered(LAYER_0, attention_mask=lambda mask: mask.roll(1, 0)),
        diagnosis="the padding mask is that of another batch row",
    ),
    Fault(
        "the mask is inverted",
        f"{LAYER_0}.self_attn.local.0.scores",
        altered(LAYER_0, attention_mask=of_real_columns(inverted)),
        diagnosis="the mask is inverted",
    ),
    Fault(
        "the mask subtracts only 10 from scores",
        f"{LAYER_0}.self_attn.local.1.scores",
        altered(LAYER_0, attention_mask=of_real_columns(lambda mask: mask.clamp(min=-10))),
        diagnosis="the mask adds only -10 to masked scores",
    ),
    Fault(
        "tokens do not attend to global tokens",
        f"{LAYER_0}.self_attn.local.0.scores",
        rewritten(f"{LAYER_0}.self_attn", piece("value=0,", "value=torch.finfo(mask.dtype).min,"), method=LOCAL),
        diagnosis="global tokens are masked as keys",
    ),
    Fault(
        "global tokens do not attend to each other",
        f"{LAYER_0}.self_attn.global.scores",
        rewritten(f"{LAYER_0}.self_attn", piece("value=0)", "value=torch.finfo(mask.dtype).min)"), method=GLOBAL),
        diagnosis="global tokens are masked as keys",
    ),
    Fault(
        "the causal mask lets each token see the next one",
        "decoder.layers.0.self_attn.scores",
        altered("decoder.layers.0.self_attn", attention_mask=causal_but(2)),
        diagnosis="the causal mask lets each token see the next one",
    ),
    Fault(
        "the causal mask is missing",
        "decoder.layers.1.self_attn.scores",
        altered("decoder.layers.1.self_attn", attention_mask=torch.zeros_like),
        diagnosis="the mask is missing",
    ),
    Fault(
        "cross-attention sees padding",
        "decoder.layers.0.encoder_attn.scores",
        altered("decoder.layers.0.encoder_attn", attention_mask=torch.zeros_like),
        diagnosis="padding keys are not masked: no mask, or one on queries",
    ),
    Fault(
        "cross-attention sees global tokens too",
        "decoder.layers.0.encoder_attn.k_proj",
        all_of(
            combined(
                "decoder.layers.0", "encoder_hidden_states", LAYER_1, lambda x, both: torch.cat([both[1], x], dim=1)
            ),
            altered("decoder.layers.0.encoder_attn", attention_mask=lambda mask: torch.nn.functional.pad(mask, (4, 0))),
        ),
        diagnosis="cross-attention sees the global tokens too, before the others",
    ),
]
