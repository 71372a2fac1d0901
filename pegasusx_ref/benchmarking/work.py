"""How much work a case is: FLOPs of its matrix products, or bytes that have to be read from memory at least."""

from functools import cache
from math import prod
from typing import NamedTuple

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.benchmarking.cases import Case
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.weights import parameter_shapes
from pegasusx_ref.study.costs import cache_size
from pegasusx_ref.study.steps import steps, weights_of

NEW_TOKENS = 12  # of a text in decoding: more than the torch backend takes to lay out weights for few rows


class Work(NamedTuple):
    """An amount of work.

    Attributes:
        amount: how much.
        unit: "FLOP", a multiplication and an addition counted as two, which the machine does at its matmul rate; or
            "B", bytes, which it reads at its memory's rate.
    """

    amount: int
    unit: str


@cache
def work_of(case: Case) -> Work:
    """Count the work of a case: of the encoder or its core FLOPs, of a decoded token or of loading bytes."""
    config, itemsize = case.config, numpy_dtype(case.dtype).itemsize
    if case.kind == "encoder":
        return Work(encoder_flops(config, case.tokens), "FLOP")
    if case.kind == "core":
        return Work(core_flops(config, case.tokens), "FLOP")
    if case.kind == "decoder":
        return Work(itemsize * numbers_a_token(config, case.tokens, NEW_TOKENS // 2, case.beams), "B")
    return Work(itemsize * sum(prod(shape) for shape in parameter_shapes(config).values()), "B")


def encoder_flops(config: PegasusXConfig, T: int) -> int:
    """Count the FLOPs of the encoder.

    Args:
        config: the model's configuration.
        T: source tokens.
    """
    return sum(step.flops for step in steps(config, T, 1) if step.name.startswith("encoder."))


def core_flops(config: PegasusXConfig, T: int) -> int:
    """Count the FLOPs of the attention of a staggered layer, without its projections.

    Args:
        config: the model's configuration.
        T: source tokens.
    """
    places = tuple(f"encoder.layers.1.self_attn.{which}." for which in ("local", "global"))
    return sum(step.flops for step in steps(config, T, 1) if step.name.startswith(places))


def numbers_a_token(config: PegasusXConfig, T: int, past: int, beams: int) -> int:
    """Count the numbers that decoding a token has to read.

    They are the weights of decoder and head, without those that made the keys and values of the cross-attention, then
    these keys and values, once for all beams, and each beam's own.

    Args:
        config: the model's configuration.
        T: source tokens.
        past: target tokens before it, at least one.
        beams: texts of one source that are followed.
    """
    shapes = parameter_shapes(config)
    takers = [step for step in steps(config, T, 1, past=past) if not step.name.endswith("embed_tokens")]
    weights = {weight for step in takers for weight in weights_of(step.name, shapes)}
    return sum(prod(shapes[weight]) for weight in weights) + cache_size(config, T, beams * past)
