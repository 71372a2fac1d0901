"""The suites: lists of cases for a CPU, for a first look, and for a CUDA device."""

import dataclasses

from pegasusx_ref.benchmarking.cases import MACHINE, THEIRS, Aim, Case

BOTH = (THEIRS, "torch", "numpy", MACHINE)
TORCH = (THEIRS, "torch", MACHINE)


def aims(figure: str, torch: float, numpy: float) -> tuple[Aim, Aim]:
    """Set one figure's aim for both of our CPU backends."""
    return Aim("torch", figure, torch), Aim("numpy", figure, numpy)


CPU = (
    Case("encoder", "large", "float32", BOTH, 1024),
    Case("encoder", "large", "float32", BOTH, 4096, aims=aims("time", 0.55, 0.75)),
    Case("encoder", "large", "float32", BOTH, 8192),
    Case(
        "encoder",
        "large",
        "float32",
        BOTH,
        16384,
        grows_from=4096,
        aims=(*aims("time", 0.35, 0.50), *aims("memory", 0.35, 0.50), *aims("growth", 4.3, 4.3)),
    ),
    Case("encoder", "base", "bfloat16", TORCH, 4096, aims=(Aim("torch", "time", 0.50),)),
    Case("decoder", "large", "float32", BOTH, 4096, beams=1, aims=aims("time", 0.60, 0.80)),
    Case("decoder", "large", "float32", BOTH, 4096, beams=8, aims=aims("time", 0.06, 0.10)),
    Case("load", "large", "float32", BOTH, aims=aims("time", 0.7, 0.7)),
)

QUICK = (
    Case("encoder", "base", "float32", BOTH, 256),
    Case("encoder", "base", "float32", BOTH, 1024, grows_from=256),
    Case("encoder", "tiny", "bfloat16", TORCH, 256),
    Case("decoder", "tiny", "float32", BOTH, 256, beams=4),
    Case("load", "tiny", "float32", BOTH),
)

CUDA = (
    Case(
        "encoder",
        "large",
        "bfloat16",
        TORCH,
        16384,
        aims=(Aim("torch", "time", 0.333), Aim("torch", "share", 0.45)),
    ),
    Case("decoder", "large", "bfloat16", TORCH, 4096, beams=1),
    Case("decoder", "large", "bfloat16", TORCH, 4096, beams=8, aims=(Aim("torch", "time", 0.125),)),
    Case("core", "large", "float32", ("torch", "cupy", MACHINE), 16384, aims=(Aim("cupy", "time", 1.0),)),
    Case("core", "large", "bfloat16", ("torch", MACHINE), 16384),
)

SUITES = {"cpu": CPU, "quick": QUICK, "cuda": CUDA}
DEVICES = {"cpu": "cpu", "quick": "cpu", "cuda": "cuda:0"}


def resized(cases: tuple[Case, ...], tokens: int | None = None, preset: str | None = None) -> tuple[Case, ...]:
    """Take cases at another size, each that is left once and without its aims, which are those of the first size.

    Args:
        cases: of a suite.
        tokens: T, where a case has a source; None leaves it.
        preset: the model's shape; None leaves it.
    """
    if tokens is None and preset is None:
        return cases
    return tuple(
        dict.fromkeys(
            dataclasses.replace(
                case,
                tokens=tokens if tokens and case.tokens else case.tokens,
                preset=preset or case.preset,
                grows_from=None,
                aims=(),
            )
            for case in cases
        )
    )
