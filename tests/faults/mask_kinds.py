"""Faults in masks, each of another kind, and in what blocks see."""

from typing import Any

from faults.attending import attending, lowest
from faults.fault import GLOBAL, LAYER_0, LAYER_1, LOCAL, Fault
from faults.injection import all_of, altered, attribute, piece, returning, rewritten, torch
from faults.masks_and_blocks import blocks_of, causal_but, of_real_columns


def moved(mask: Any, step: int) -> Any:
    """Move a mask along the tokens; the token at the end is repeated."""
    places = (torch.arange(mask.shape[-1]) - step).clamp(0, mask.shape[-1] - 1)
    return mask[..., places]


def last_masked(mask: Any) -> Any:
    mask = mask.clone()
    mask[..., -1] = lowest(mask)
    return mask


def causal(scores: Any) -> Any:
    """Mask later tokens of a block, behind 4 global tokens."""
    return scores + torch.nn.functional.pad(torch.full_like(scores[0, 0, 0, :, 4:], lowest(scores)).triu(1), (4, 0))


MASK_KINDS = [
    Fault(
        "the causal mask hides each token from itself",
        "decoder.layers.1.self_attn.scores",
        altered("decoder.layers.1.self_attn", attention_mask=causal_but(0)),
        diagnosis="the causal mask hides each token from itself",
    ),
    Fault(
        "the causal mask lets each token see two more",
        "decoder.layers.0.self_attn.scores",
        altered("decoder.layers.0.self_attn", attention_mask=causal_but(3)),
        diagnosis="the causal mask lets each token see the next two",
    ),
    Fault(
        "the causal mask is transposed",
        "decoder.layers.1.self_attn.scores",
        altered("decoder.layers.1.self_attn", attention_mask=lambda mask: mask.transpose(-1, -2)),
        diagnosis="the causal mask is transposed: tokens see themselves and later ones",
    ),
    Fault(
        "the padding mask is one token late",
        f"{LAYER_0}.self_attn.local.1.scores",
        altered(LAYER_0, attention_mask=of_real_columns(lambda mask: moved(mask, 1))),
        diagnosis="the padding mask is 1 token too late",
    ),
    Fault(
        "the padding mask is half a block early",
        "decoder.layers.0.encoder_attn.scores",
        altered("decoder.layers.0.encoder_attn", attention_mask=lambda mask: moved(mask, -4)),
        diagnosis="the padding mask is 4 tokens too early",
    ),
    Fault(
        "the padding mask is reversed",
        "decoder.layers.1.encoder_attn.scores",
        altered("decoder.layers.1.encoder_attn", attention_mask=lambda mask: mask.flip(-1)),
        diagnosis="the padding mask is in the reverse order",
    ),
    Fault(
        "the last source token is masked",
        "decoder.layers.0.encoder_attn.scores",
        altered("decoder.layers.0.encoder_attn", attention_mask=last_masked),
        diagnosis="the last key is ignored",
    ),
    Fault(
        "the mask multiplies scores",
        f"{LAYER_0}.self_attn.global.scores",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("attn_weights + extended_mask", "attn_weights * (extended_mask == 0)"),
            method=GLOBAL,
        ),
        diagnosis="the mask multiplies scores: masked scores are 0",
    ),
    Fault(
        "masked scores are -10",
        "decoder.layers.1.encoder_attn.scores",
        attending("decoder.layers.1.encoder_attn", mask=lambda s, mask: torch.where(mask < 0, -10.0, s)),
        diagnosis="masked scores are set to -10, which is not low enough",
    ),
    Fault(
        "the mask is applied after the softmax",
        "decoder.layers.0.encoder_attn.scores",
        attending(
            "decoder.layers.0.encoder_attn",
            mask=lambda s, _: s,
            normalize=lambda s, mask: s.softmax(-1) * (mask == 0),
        ),
        diagnosis="the mask multiplies probabilities after the softmax, whose sum is not 1 then",
    ),
    Fault(
        "the mask is not moved past the global tokens",
        f"{LAYER_0}.self_attn.local.1.scores",
        rewritten(f"{LAYER_0}.self_attn", piece("pad=(dim.global_len, 0)", "pad=(0, dim.global_len)"), method=LOCAL),
        diagnosis="the mask is not moved past the global tokens, which are the first keys",
    ),
]

BLOCK_KINDS = [
    Fault(
        "attention within blocks is causal",
        f"{LAYER_1}.self_attn.local.0.scores",
        rewritten(
            f"{LAYER_1}.self_attn",
            piece("nn.functional.softmax(attn_weights,", "nn.functional.softmax(causal(attn_weights),"),
            method=LOCAL,
            causal=causal,
        ),
        diagnosis="attention within blocks is causal",
    ),
    Fault(
        "blocks are half as long",
        f"{LAYER_0}.self_attn.local.0.scores",
        blocks_of(4, f"{LAYER_0}.self_attn"),
        diagnosis="blocks have 4 tokens, not 8",
    ),
    Fault(
        "blocks are twice as long",
        f"{LAYER_0}.self_attn.local.0.scores",
        blocks_of(16, f"{LAYER_0}.self_attn"),
        diagnosis="blocks have 16 tokens, not 8",
    ),
    Fault(
        "tokens see all tokens",
        f"{LAYER_0}.self_attn.local.0.scores",
        blocks_of(32, f"{LAYER_0}.self_attn"),
        diagnosis="tokens see all tokens: there are no blocks",
    ),
    Fault(
        "the blocks of an even layer are shifted by two tokens",
        f"{LAYER_0}.self_attn.local.0.scores",
        all_of(
            attribute(LAYER_0, "stagger_blocks_this_layer", True),
            returning(LAYER_0, lambda both, _: tuple(x.roll(-2, 1) for x in both), method="pad_local_tokens"),
            altered(LAYER_0, "unpad_local_tokens", padded_hidden_states=lambda x: x.roll(2, 1)),
        ),
        diagnosis="the first block has 6 tokens, not 8",
    ),
    Fault(
        "the keys of each block start two tokens too late",
        f"{LAYER_0}.self_attn.local.0.scores",
        altered(
            f"{LAYER_0}.self_attn",
            LOCAL,
            local_k=lambda k: k.roll(-2, 2),
            local_v=lambda v: v.roll(-2, 2),
            mask=lambda mask: mask.roll(-2, 1),
        ),
        diagnosis="the keys of each block start 2 tokens too late",
    ),
]
