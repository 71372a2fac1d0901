"""The work of a case: FLOPs of its matrix products, or the bytes that it must read from memory."""

from functools import cache
from math import prod
from typing import NamedTuple

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.benchmarking.cases import NEW_TOKENS, SUMMARY_TOKENS, TARGET_TOKENS, Case
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.weights import parameter_shapes
from pegasusx_ref.study.costs import cache_size
from pegasusx_ref.study.shape_inference import steps, weights_of

ENCODER = ("encoder.",)
CORE = ("encoder.layers.1.self_attn.local.", "encoder.layers.1.self_attn.global.")  # of a staggered layer


class Work(NamedTuple):
    """An amount of work.

    Attributes:
        amount: how much.
        unit: "FLOP", where a multiplication and an addition count as two; "B", bytes read from memory; "tokens" of
            summaries; or "processes".
    """

    amount: int
    unit: str


@cache
def work_of(case: Case) -> Work:
    """Count FLOPs of an encoder, its core or a training step, bytes that a token or a file needs, or results."""
    if case.kind == "start":
        return Work(1, "processes")
    if case.kind == "texts":
        return Work(case.texts * SUMMARY_TOKENS, "tokens")
    config, T, itemsize = case.config, case.tokens, numpy_dtype(case.dtype).itemsize
    if case.kind in ("encoder", "core"):
        return Work(matmul_flops(config, T, ENCODER if case.kind == "encoder" else CORE), "FLOP")
    if case.kind == "training":  # the backward pass takes twice the products of the forward pass, without repetitions
        return Work(3 * case.texts * sum(step.flops for step in steps(config, T, TARGET_TOKENS)), "FLOP")
    if case.kind == "decoder":
        numbers = decode_step_reads(config, T, NEW_TOKENS // 2, case.beams)
    else:
        numbers = sum(prod(shape) for shape in parameter_shapes(config).values())
    return Work(itemsize * numbers, "B")


def matmul_flops(config: PegasusXConfig, T: int, prefixes: tuple[str, ...]) -> int:
    """Count the FLOPs of the steps whose names begin with one of the prefixes, for T source tokens."""
    return sum(step.flops for step in steps(config, T, 1) if step.name.startswith(prefixes))


def decode_step_reads(config: PegasusXConfig, T: int, past: int, beams: int) -> int:
    """Count the numbers that decoding one token must read.

    These are the weights of decoder and head except those that computed the cross-attention's keys and values, then
    these keys and values once for all beams, and the self-attention's keys and values of each beam.

    Args:
        config: the model's configuration.
        T: source tokens.
        past: target tokens before this one, at least one.
        beams: of the search.
    """
    shapes = parameter_shapes(config)
    readers = [step for step in steps(config, T, 1, past=past) if not step.name.endswith("embed_tokens")]
    weights = {weight for step in readers for weight in weights_of(step.name, shapes)}
    return sum(prod(shapes[weight]) for weight in weights) + cache_size(config, T, beams * past)
