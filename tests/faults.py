"""The suite of single faults: for each, the injected bug, the tensor that `verify` must flag, and the diagnosis.

Most faults are injected into a live transformers model, the others into its tensors after a run. Each kind of fault
occurs once, although it could be in any layer. The tensor to flag follows from the fault, not from what `verify` finds.
"""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from fault_injection import (
    Injection,
    all_of,
    altered,
    at,
    attribute,
    borrowed,
    combined,
    computing,
    for_globals,
    noise,
    normalizing,
    nudged,
    parameter,
    piece,
    positions,
    returning,
    rewritten,
    softmax,
    swapped,
    torch,
)

from pegasusx_ref.golden.attention import split_heads
from pegasusx_ref.golden.embedding import sinusoidal_positions

EVERYWHERE = ("float64", "float32", "bfloat16")
FINE = ("float64", "float32")  # smaller than bfloat16 rounding
LOW = ("float32", "bfloat16")  # a fault of low precision

Tensors = Mapping[str, np.ndarray]


class Fault(NamedTuple):
    """One injected bug.

    Attributes:
        name: the fault in words.
        where: the tensor that must be flagged first.
        model: changes a live transformers model in memory.
        dump: changes a stored tensor; takes the right one, and all tensors.
        diagnosis: the expected diagnosis; None where it is not among the known bugs.
        seen_in: the arithmetics in which it exceeds rounding.
        config: settings that differ from `fault_table.CONFIG`.
    """

    name: str
    where: str
    model: Injection | None = None
    dump: Callable[[np.ndarray, Tensors], np.ndarray] | None = None
    diagnosis: str | None = None
    seen_in: tuple[str, ...] = EVERYWHERE
    config: Mapping[str, Any] = {}


# --- helpers of faults


def exact_positions(side: str, first: int = 0) -> Injection:
    """Add the specification's positions; transformers computes them in the model's dtype."""
    return positions(side, lambda T, D: sinusoidal_positions(first, T, D))


def interleaved(T: int, D: int) -> np.ndarray:
    sines, cosines = np.split(sinusoidal_positions(0, T, D), 2, axis=1)
    return np.stack([sines, cosines], axis=2).reshape(T, D)


def spaced(T: int, D: int, base: float, steps: int) -> np.ndarray:
    angles = np.arange(T)[:, None] * base ** (-np.arange(D // 2) / steps)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


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


def distances(mask: Any) -> Any:
    """Compute what ALiBi adds to the scores."""
    places = torch.arange(mask.shape[-1])
    return (0.1 * (places[None] - places[:, None])).to(mask.dtype)


def cached(update: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """Replace the cache by one that returns other keys and values than those that were added."""
    return lambda _: SimpleNamespace(update=lambda k, v, layer: update(k, v))


def other_heads(x: Any) -> Any:
    """Give each head every fourth feature, instead of adjacent ones."""
    return x.unflatten(-1, (8, 4)).transpose(-1, -2).flatten(-2)


def in_bfloat16(module: Any, x: Any) -> Any:
    return torch.nn.functional.linear(x.bfloat16(), module.weight.bfloat16(), module.bias.bfloat16()).to(x.dtype)


def truncated_to_bfloat16(module: Any, x: Any) -> Any:
    exact = torch.nn.functional.linear(x.double(), module.weight.double(), module.bias.double()).float()
    return (exact.view(torch.int32) & -(2**16)).view(torch.float32).to(x.dtype)


def with_number(x: np.ndarray, number: float) -> np.ndarray:
    x = x.copy()
    x[0, 2, 5] = number
    return x


def zero_at(index: Any, x: Any) -> Any:
    x = x.clone()
    x[index] = 0
    return x


def moved(x: Any, start: int, stop: int) -> Any:
    """Rotate a range of the token axis by one."""
    return torch.cat([x[:, :, :start], x[:, :, start:stop].roll(1, 2), x[:, :, stop:]], dim=2)


# --- the suite

LAYER_0, LAYER_1 = "encoder.layers.0", "encoder.layers.1"
LOCAL, GLOBAL = "compute_local_attention_representations", "compute_global_attention_representations"
SUM = "hidden_states = residual + hidden_states"  # three times in a decoder layer
ROOT = math.sqrt(32)

LAYER_NORM = [
    Fault(
        "eps is 1e-6",
        f"{LAYER_1}.tokens.final_layer_norm",
        attribute(f"{LAYER_1}.final_layer_norm", "eps", 1e-6),
        diagnosis="LayerNorm's eps is 1e-06, not 1e-05",
        seen_in=FINE,
    ),
    Fault(
        "eps is 1e-12, as in the paper's code",
        f"{LAYER_0}.globals.self_attn_layer_norm",
        attribute(f"{LAYER_0}.global_self_attn_layer_norm", "eps", 1e-12),
        diagnosis="LayerNorm's eps is 1e-12, not 1e-05",
        config={"init_std": 3e-4},  # activations so small that eps matters
    ),
    Fault(
        "eps is added outside the square root",
        "decoder.layers.1.encoder_attn_layer_norm",
        normalizing(
            "decoder.layers.1.encoder_attn_layer_norm",
            lambda x, eps: (x - x.mean(-1, True)) / (x.std(-1, correction=0, keepdim=True) + eps),
        ),
        diagnosis="eps is added outside the square root",
        seen_in=FINE,
    ),
    Fault(
        "the variance is divided by n - 1",
        "decoder.layers.1.final_layer_norm",
        normalizing(
            "decoder.layers.1.final_layer_norm",
            lambda x, eps: (x - x.mean(-1, True)) / (x.var(-1, correction=1, keepdim=True) + eps).sqrt(),
        ),
        diagnosis="the variance is divided by n - 1",
    ),
    Fault(
        "the mean is not subtracted (RMSNorm)",
        f"{LAYER_1}.tokens.self_attn_layer_norm",
        normalizing(
            f"{LAYER_1}.self_attn_layer_norm", lambda x, eps: x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()
        ),
        diagnosis="the mean is not subtracted",
    ),
    Fault(
        "LayerNorm without its weight",
        f"{LAYER_1}.globals.self_attn_layer_norm",
        parameter(f"{LAYER_1}.global_self_attn_layer_norm", "weight", torch.ones_like),
        diagnosis="LayerNorm has no scale",
    ),
    Fault(
        "LayerNorm without its bias",
        "decoder.layer_norm",
        parameter("decoder.layer_norm", "bias", torch.zeros_like),
        diagnosis="LayerNorm has no shift",
    ),
    Fault(
        "the final LayerNorm is missing",
        "encoder.layer_norm",
        attribute("encoder", "layer_norm", torch.nn.Identity()),
        diagnosis="LayerNorm is missing",
    ),
    Fault(
        "global tokens share the tokens' LayerNorm",
        f"{LAYER_0}.globals.self_attn_layer_norm",
        borrowed(LAYER_0, "global_self_attn_layer_norm", f"{LAYER_0}.self_attn_layer_norm"),
        diagnosis="the weights of self_attn_layer_norm are used",
    ),
    Fault(
        "global tokens have a feed-forward LayerNorm of their own",
        f"{LAYER_0}.globals.final_layer_norm",
        for_globals(f"{LAYER_0}.final_layer_norm", lambda m, x: torch.nn.functional.layer_norm(x, (32,))),
        diagnosis="LayerNorm has neither scale nor shift: weights of its own that were not loaded?",
    ),
    Fault(
        "post-LN: the residual sum is normalized, not the input of attention",
        "decoder.layers.0.self_attn_layer_norm",
        rewritten(
            "decoder.layers.0",
            piece("hidden_states = self.self_attn_layer_norm(hidden_states)", ""),
            piece(SUM, "hidden_states = self.self_attn_layer_norm(residual + hidden_states)", times=3),
        ),
        diagnosis="LayerNorm follows the residual sum (post-LN), where it should precede the sublayer (pre-LN)",
    ),
]

EMBEDDING = [
    Fault(
        "the embedding scale is missing",
        "encoder.embed_tokens",
        attribute("encoder.embed_tokens", "embed_scale", 1.0),
        diagnosis="the embedding scale is missing",
    ),
    Fault(
        "the embedding scale is applied twice",
        "decoder.embed_tokens",
        attribute("decoder.embed_tokens", "embed_scale", 32.0),
        diagnosis="the embedding scale is applied twice",
    ),
    Fault(
        "the embedding scale is applied to global tokens",
        "encoder.embed_global",
        returning("encoder.embed_global", lambda x, _: x * ROOT),
        diagnosis="embeddings are scaled by sqrt(D)",
    ),
    Fault(
        "global tokens start in the reverse order",
        "encoder.embed_global",
        returning("encoder.embed_global", lambda x, _: x.flip(1)),
        diagnosis="global tokens are in the reverse order",
    ),
    Fault(
        "padding's embedding is 0",
        "decoder.embed_tokens",
        parameter("decoder.embed_tokens", "weight", lambda table: zero_at(0, table)),
        diagnosis="padding's embedding is 0",
    ),
    Fault(
        "ids are off by one",
        "encoder.embed_tokens",
        altered("encoder.embed_tokens", input_ids=lambda ids: ids - 1),
        diagnosis="ids are one too small",
    ),
    Fault(
        "labels are not shifted: the decoder sees the token that it should predict",
        "decoder.embed_tokens",
        altered("decoder.embed_tokens", input_ids=lambda ids: ids.roll(-1, 1)),
        diagnosis="target tokens are labels: they are not shifted right",
    ),
]

POSITIONS = [
    Fault(
        "positions are computed in the model's dtype, as in transformers",
        "encoder.embeddings",
        lambda model: delattr(at(model, "encoder.embed_positions"), "forward"),
        diagnosis="positions are computed in low precision",
        seen_in=LOW,
    ),
    Fault(
        "positions start at 1",
        "encoder.embeddings",
        exact_positions("encoder", 1),
        diagnosis="positions start one too late",
    ),
    Fault(
        "sines and cosines are interleaved",
        "encoder.embeddings",
        positions("encoder", interleaved),
        diagnosis="sines and cosines are interleaved",
    ),
    Fault(
        "cosines come first",
        "decoder.embeddings",
        positions("decoder", lambda T, D: np.roll(sinusoidal_positions(0, T, D), D // 2, axis=1)),
        diagnosis="cosines come before sines",
    ),
    Fault(
        "frequencies are spaced by 1 / (D/2)",
        "decoder.embeddings",
        positions("decoder", lambda T, D: spaced(T, D, 10000.0, D // 2)),
        diagnosis="frequencies are spaced by 1 / (D/2), not 1 / (D/2 - 1)",
    ),
    Fault(
        "the base is 1000",
        "encoder.embeddings",
        positions("encoder", lambda T, D: spaced(T, D, 1000.0, D // 2 - 1)),
        diagnosis="the base of the frequencies is 1000, not 10000",
    ),
    Fault(
        "positions are missing",
        "encoder.embeddings",
        positions("encoder", lambda T, D: np.zeros((T, D))),
        diagnosis="positions are missing",
    ),
    Fault(
        "the decoder uses position 0 for every token",
        "decoder.embeddings",
        positions("decoder", lambda T, D: np.tile(sinusoidal_positions(0, 1, D), (T, 1))),
        diagnosis="all positions are the first one",
    ),
    Fault(
        "positions start again in each block",
        "encoder.embeddings",
        positions("encoder", lambda T, D: np.tile(sinusoidal_positions(0, 8, D), (4, 1))[:T]),
    ),
]

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
    ),
    Fault(
        "the queries of global tokens are 5 percent too large",
        f"{LAYER_1}.self_attn.global.scores",
        altered(f"{LAYER_1}.self_attn", GLOBAL, global_q=lambda q: q * 1.05),
    ),
    Fault(
        "scores are capped at 10",
        f"{LAYER_0}.self_attn.global.scores",
        rewritten(
            f"{LAYER_0}.self_attn",
            piece("attn_weights + extended_mask", "10 * torch.tanh(attn_weights / 10) + extended_mask"),
            method=GLOBAL,
        ),
    ),
    Fault(
        "the distance is added to scores (ALiBi)",
        "decoder.layers.1.self_attn.scores",
        altered("decoder.layers.1.self_attn", attention_mask=lambda mask: mask + distances(mask)),
    ),
    Fault(
        "heads take their features in another order",
        f"{LAYER_0}.self_attn.local.0.scores",
        altered(f"{LAYER_0}.self_attn", "_shape", tensor=other_heads),
        diagnosis="queries and keys are split into heads as (F, H), not (H, F)",
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
    ),
    Fault(
        "the cache returns keys in the reverse order",
        "decoder.layers.0.self_attn.scores",
        altered("decoder.layers.0.self_attn", past_key_values=cached(lambda k, v: (k.flip(2), v))),
        diagnosis="keys are in the reverse order",
    ),
]

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
    ),
    Fault(
        "the last block, which is not full, is left out",
        f"{LAYER_0}.self_attn.local.3.context",
        returning(
            f"{LAYER_0}.self_attn",
            lambda both, _: (zero_at((..., 3, slice(None), slice(None)), both[0]), both[1]),
            LOCAL,
        ),
    ),
    Fault(
        "the values of one block are off by one token",
        f"{LAYER_0}.self_attn.local.1.context",
        altered(f"{LAYER_0}.self_attn", LOCAL, local_v=lambda v: moved(v, 8, 16)),
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
    ),
]

WEIGHTS = [
    Fault(
        "queries and keys are swapped",
        "decoder.layers.1.self_attn.q_proj",
        swapped("decoder.layers.1.self_attn", "q_proj", "k_proj"),
        diagnosis="the weights of k_proj are used",
    ),
    Fault(
        "a weight is transposed",
        "decoder.layers.0.encoder_attn.out_proj",
        parameter("decoder.layers.0.encoder_attn.out_proj", "weight", lambda w: w.T),
        diagnosis="the weight is transposed",
    ),
    Fault(
        "the bias is missing",
        "decoder.layers.0.fc1",
        parameter("decoder.layers.0.fc1", "bias", torch.zeros_like),
        diagnosis="the bias is missing",
    ),
    Fault(
        "the bias is added twice",
        "decoder.layers.1.fc2",
        parameter("decoder.layers.1.fc2", "bias", lambda bias: 2 * bias),
        diagnosis="the bias is added twice",
    ),
    Fault(
        "one bias is off by 1e-4",
        "decoder.layers.0.fc2",
        nudged("decoder.layers.0.fc2", "bias", (3,), 1e-4),
        diagnosis="the bias differs",
        seen_in=FINE,
    ),
    Fault(
        "one weight is off by 1e-3",
        f"{LAYER_1}.self_attn.tokens.out_proj",
        nudged(f"{LAYER_1}.self_attn.out_proj", "weight", (5, 7), 1e-3),
        diagnosis="the weight differs: another matrix",
    ),
    Fault(
        "one weight matrix is rounded to float8",
        f"{LAYER_1}.tokens.fc2",
        parameter(f"{LAYER_1}.fc2", "weight", lambda w: w.to(torch.float8_e4m3fn).to(w.dtype)),
    ),
    Fault(
        "the weights of another layer",
        "decoder.layers.1.fc1",
        borrowed("decoder.layers.1", "fc1", "decoder.layers.0.fc1"),
        diagnosis="the weights of decoder.layers.0.fc1 are used",
    ),
    Fault(
        "global tokens have a query projection of their own",
        f"{LAYER_1}.self_attn.globals.q_proj",
        for_globals(
            f"{LAYER_1}.self_attn.q_proj",
            lambda m, x: torch.nn.functional.linear(x, (0.2 * noise(m.weight)).to(x.dtype)),
        ),
    ),
    Fault(
        "a product in bfloat16",
        "decoder.layers.1.fc1",
        computing("decoder.layers.1.fc1", in_bfloat16),
        seen_in=FINE,
        diagnosis="its numbers have bfloat16 precision only: computed or stored in bfloat16",
    ),
    Fault(
        "a result is truncated to bfloat16, not rounded",
        "decoder.layers.1.fc2",
        computing("decoder.layers.1.fc2", truncated_to_bfloat16),
        diagnosis="its numbers have bfloat16 precision only: computed or stored in bfloat16",
    ),
    Fault(
        "the head is not tied to the embeddings",
        "lm_head",
        parameter("lm_head", "weight", lambda w: 0.2 * noise(w)),
        diagnosis="the weight differs: the head is not tied to the embeddings",
    ),
    Fault(
        "logits have a bias",
        "lm_head",
        lambda model: setattr(at(model, "lm_head"), "bias", torch.nn.Parameter(noise(model.lm_head.weight[:, 0]))),
        diagnosis="a bias is added",
    ),
    Fault(
        "logits are divided by sqrt(D), as in a tied T5",
        "lm_head",
        returning("lm_head", lambda x, _: x / ROOT),
        diagnosis="logits are divided by sqrt(D)",
    ),
]

ACTIVATIONS = [
    Fault(
        "gelu in place of relu",
        f"{LAYER_0}.tokens.activation",
        attribute(LAYER_0, "activation_fn", torch.nn.GELU()),
        diagnosis="the activation is gelu, not relu",
    ),
    Fault(
        "relu in place of gelu",
        "decoder.layers.0.activation",
        attribute("decoder.layers.0", "activation_fn", torch.nn.ReLU()),
        diagnosis="the activation is relu, not gelu",
        config={"activation_function": "gelu"},
    ),
    Fault(
        "gelu by tanh, not by erf",
        f"{LAYER_1}.tokens.activation",
        attribute(LAYER_1, "activation_fn", torch.nn.GELU(approximate="tanh")),
        diagnosis="the activation is gelu_new, not gelu",
        seen_in=FINE,
        config={"activation_function": "gelu"},
    ),
    Fault(
        "gelu by erf, not by tanh",
        "decoder.layers.1.activation",
        attribute("decoder.layers.1", "activation_fn", torch.nn.GELU()),
        diagnosis="the activation is gelu, not gelu_new",
        seen_in=FINE,
        config={"activation_function": "gelu_new"},
    ),
    Fault(
        "the activation is missing",
        "decoder.layers.1.activation",
        attribute("decoder.layers.1", "activation_fn", torch.nn.Identity()),
        diagnosis="the activation is missing",
    ),
]

STREAMS = [
    Fault(
        "the residual is missing",
        "decoder.layers.0.encoder_attn_residual",
        rewritten("decoder.layers.0", piece(SUM, "", number=1, times=3)),
        diagnosis="the residual is missing",
    ),
    Fault(
        "the update is missing",
        "decoder.layers.1.self_attn_residual",
        rewritten("decoder.layers.1", piece(SUM, "hidden_states = residual", times=3)),
        diagnosis="the update is missing",
    ),
    Fault(
        "the update is subtracted",
        "decoder.layers.0.output",
        rewritten("decoder.layers.0", piece(SUM, "hidden_states = residual - hidden_states", number=2, times=3)),
        diagnosis="the update is subtracted",
    ),
    Fault(
        "the residual is taken after the LayerNorm",
        "decoder.layers.1.output",
        rewritten(
            "decoder.layers.1",
            piece("hidden_states = self.final_layer_norm", "residual = hidden_states = self.final_layer_norm"),
        ),
        diagnosis="the residual is taken after the LayerNorm",
    ),
    Fault(
        "dropout is left on",
        f"{LAYER_0}.tokens.self_attn_residual",
        attribute(LAYER_0, "training", True),
    ),
    Fault(
        "global tokens are not updated",
        f"{LAYER_0}.globals.output",
        returning(LAYER_0, lambda both, given: (both[0], given["global_hidden_states"])),
        diagnosis="the layer changes nothing: its output is its input",
    ),
    Fault(
        "a layer is left out",
        "decoder.layers.1.output",
        returning("decoder.layers.1", lambda _, given: given["hidden_states"]),
        diagnosis="the layer changes nothing: its output is its input",
    ),
    Fault(
        "the output of the wrong encoder layer",
        "encoder.layer_norm",
        combined("encoder.layer_norm", "input", LAYER_0, lambda x, both: both[0][:, : x.shape[1]]),
    ),
    Fault(
        "the decoder reads the encoder without its final LayerNorm",
        "decoder.layers.0.encoder_attn.k_proj",
        combined("decoder.layers.0", "encoder_hidden_states", LAYER_1, lambda x, both: both[0][:, : x.shape[1]]),
    ),
]

STORED = [
    Fault(
        "batch rows are swapped",
        f"{LAYER_0}.self_attn.tokens.out_proj",
        dump=lambda x, _: x[::-1],
        diagnosis="batch rows are in the reverse order",
    ),
    Fault(
        "another layer's tensor",
        f"{LAYER_1}.tokens.fc1",
        dump=lambda _, tensors: tensors[f"{LAYER_0}.tokens.fc1"],
    ),
    Fault(
        "scores under the name of probabilities",
        "decoder.layers.0.encoder_attn.probs",
        dump=lambda _, tensors: tensors["decoder.layers.0.encoder_attn.scores"],
    ),
    Fault(
        "rows are off by one token",
        "encoder.layer_norm",
        dump=lambda x, _: np.roll(x, 1, axis=1),
        diagnosis="rows are one position too late",
    ),
    Fault(
        "the time axis precedes the batch axis",
        "decoder.layers.0.final_layer_norm",
        dump=lambda x, _: x.swapaxes(0, 1),
        diagnosis="the axis of positions precedes the batch axis",
    ),
    Fault(
        "heads are not merged: (B, H, T, F) in the shape (B, T, D)",
        "decoder.layers.0.self_attn.q_proj",
        dump=lambda x, _: split_heads(x, 4).reshape(x.shape),
    ),
    Fault("a number is NaN", "decoder.layers.0.fc1", dump=lambda x, _: with_number(x, np.nan)),
    Fault("a number has the wrong sign", "decoder.layers.1.fc2", dump=lambda x, _: with_number(x, -x[0, 2, 5])),
    Fault(
        "stored as float16",
        "decoder.layers.1.encoder_attn_residual",
        dump=lambda x, _: x.astype(np.float16).astype(x.dtype),
        seen_in=FINE,
        diagnosis="its numbers have float16 precision only: computed or stored in float16",
    ),
    Fault("large numbers saturate", f"{LAYER_0}.tokens.fc1", dump=lambda x, _: x.clip(-2, 2)),
]

SUITE = {
    "LayerNorm": LAYER_NORM,
    "Embedding": EMBEDDING,
    "Positions": POSITIONS,
    "Scores": SCORES,
    "Blocks": BLOCKS,
    "Masks": MASKS,
    "Softmax": SOFTMAX,
    "Values": VALUES,
    "Weights": WEIGHTS,
    "Activation": ACTIVATIONS,
    "Streams": STREAMS,
    "Stored tensors": STORED,
}
FAULTS = [fault for faults in SUITE.values() for fault in faults]
