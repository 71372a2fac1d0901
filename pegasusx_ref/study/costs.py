"""Costs of a run, part by part: parameters, FLOPs, memory; block-local and dense attention."""

from fnmatch import fnmatchcase
from math import prod
from typing import NamedTuple

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.weights import parameter_shapes
from pegasusx_ref.study.shape_inference import Step, steps, weights_of

# The parts of the model as patterns of trace points; every trace point belongs to exactly one part.
PARTS: dict[str, tuple[str, ...]] = {
    "token embeddings": ("*.embed_tokens", "*.embeddings"),
    "global tokens": ("encoder.embed_global",),
    "encoder: LayerNorms": ("encoder.*norm",),
    "encoder: q, k, v, out": ("encoder.*_proj",),
    "encoder: local attention": ("encoder.*.local.*",),
    "encoder: global attention": ("encoder.*.global.*",),
    "encoder: feed-forward": ("encoder.*.fc1", "encoder.*.activation", "encoder.*.fc2"),
    "encoder: residual stream": ("encoder.*.input", "encoder.*residual", "encoder.*.output"),
    "decoder: LayerNorms": ("decoder.*norm",),
    "decoder: q, k, v, out of self-attention": ("decoder.*.self_attn.*_proj",),
    "decoder: self-attention": tuple(f"decoder.*.self_attn.{name}" for name in ("scores", "probs", "context")),
    "decoder: q, out of cross-attention": ("decoder.*.encoder_attn.q_proj", "decoder.*.encoder_attn.out_proj"),
    "decoder: k, v of cross-attention": ("decoder.*.encoder_attn.k_proj", "decoder.*.encoder_attn.v_proj"),
    "decoder: cross-attention": tuple(f"decoder.*.encoder_attn.{name}" for name in ("scores", "probs", "context")),
    "decoder: feed-forward": ("decoder.*.fc1", "decoder.*.activation", "decoder.*.fc2"),
    "decoder: residual stream": ("decoder.*.input", "decoder.*residual", "decoder.*.output"),
    "head": ("lm_head",),
}


class Cost(NamedTuple):
    """The cost of a part of the model.

    Attributes:
        name: of the part.
        parameters: weights that no earlier part counts: a tied head has none.
        flops: of the matrix products.
        largest: number of elements of the largest tensor.
    """

    name: str
    parameters: int
    flops: int
    largest: int


class Attention(NamedTuple):
    """The cost of the encoder's attention, without its projections.

    Attributes:
        name: of the kind.
        scores: pairs of a query and a key in all heads, for one text, in the layer with most of them.
        flops: of scores and weighted sums, over all layers and texts.
        largest: number of elements of the largest tensor of scores.
    """

    name: str
    scores: int
    flops: int
    largest: int


def part_of(name: str) -> str:
    """Return the part that a trace point belongs to."""
    return next(part for part, patterns in PARTS.items() if any(fnmatchcase(name, pattern) for pattern in patterns))


def part_costs(config: PegasusXConfig, T: int, L: int, B: int = 1) -> list[Cost]:
    """Compute the cost of each part in a run over a whole source and a whole target.

    Args:
        config: the model's configuration.
        T: source tokens.
        L: target tokens.
        B: batch size.
    """
    by_part: dict[str, list[Step]] = {part: [] for part in PARTS}
    for one in steps(config, T, L, B):
        by_part[part_of(one.name)].append(one)
    counted: set[str] = set()
    return [cost(part, config, members, counted) for part, members in by_part.items()]


def cost(name: str, config: PegasusXConfig, members: list[Step], counted: set[str] | None = None) -> Cost:
    """Add up the cost of steps.

    Args:
        name: of the part.
        config: the model's configuration.
        members: the steps.
        counted: weights that are counted already; those of these steps are added.
    """
    counted = set() if counted is None else counted
    shapes = parameter_shapes(config)
    weights = {weight for one in members for weight in weights_of(one.name, shapes)} - counted
    counted |= weights
    return Cost(
        name,
        parameters=sum(prod(shapes[weight]) for weight in weights),
        flops=sum(one.flops for one in members),
        largest=max((one.size for one in members), default=0),
    )


def block_local_attention(config: PegasusXConfig, T: int, B: int = 1) -> Attention:
    """Compute the cost of PEGASUS-X's attention: H (T (G + K) + G (G + T)) scores a layer if K divides T.

    Args:
        config: the model's configuration.
        T: source tokens.
        B: batch size.
    """
    inside = [one for one in steps(config, T, 1, B) if ".local." in one.name or ".global." in one.name]
    scores = [one for one in inside if one.name.endswith(".scores")]
    layers = {one.name.split(".self_attn.")[0] for one in scores}
    by_layer = [sum(one.size for one in scores if one.name.startswith(f"{layer}.")) // B for layer in layers]
    return Attention(
        "block-local and global",
        scores=max(by_layer, default=0),
        flops=sum(one.flops for one in inside),
        largest=max((one.size for one in scores), default=0),
    )


def dense_attention(config: PegasusXConfig, T: int, B: int = 1) -> Attention:
    """Compute the cost of attention from every token to every token, without global tokens: H T T scores a layer.

    Args:
        config: the model's configuration.
        T: source tokens.
        B: batch size.
    """
    H, D, N = config.encoder_attention_heads, config.d_model, config.encoder_layers
    scores = H * T * T if N else 0
    products = 2  # of queries with keys, and of weights with values; H F = D
    return Attention("dense", scores=scores, flops=N * products * 2 * B * D * T * T, largest=B * scores)


def token_flops(config: PegasusXConfig, T: int, past: int, B: int = 1) -> int:
    """Count the FLOPs of a decode step: one more target token, with all earlier ones in the caches.

    Args:
        config: the model's configuration.
        T: source tokens.
        past: target tokens before it, at least one: the first one computes the cross-attention's keys and values.
        B: batch size.
    """
    return sum(one.flops for one in steps(config, T, 1, B, past))


def cache_size(config: PegasusXConfig, T: int, L: int, B: int = 1) -> int:
    """Count the elements of the decoder's caches: keys and values of L target and T source tokens in every layer."""
    return 2 * config.decoder_layers * B * (L + T) * config.d_model
