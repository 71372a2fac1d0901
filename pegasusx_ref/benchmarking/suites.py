"""The suites: lists of cases for a CPU, for a quick look, for a CUDA device, and for training."""

import dataclasses

from pegasusx_ref.benchmarking.cases import MACHINE, TRANSFORMERS, Aim, Case

ALL = (TRANSFORMERS, "torch", "numpy", MACHINE)
TORCH = (TRANSFORMERS, "torch", MACHINE)


def aims(figure: str, torch: float, numpy: float) -> tuple[Aim, Aim]:
    """Set the aims for one metric of both CPU backends."""
    return Aim("torch", figure, torch), Aim("numpy", figure, numpy)


LONG_TEXT = (*aims("time", 0.35, 0.50), *aims("memory", 0.35, 0.50), *aims("growth", 4.3, 4.3))
CPU = (
    Case("encoder", "large", "float32", ALL, 1024),
    Case("encoder", "large", "float32", ALL, 4096, aims=aims("time", 0.55, 0.75)),
    Case("encoder", "large", "float32", ALL, 8192),
    Case("encoder", "large", "float32", ALL, 16384, grows_from=4096, aims=LONG_TEXT),
    Case("encoder", "base", "bfloat16", TORCH, 4096, aims=(Aim("torch", "time", 0.50),)),
    Case("decoder", "large", "float32", ALL, 4096, beams=1, aims=aims("time", 0.60, 0.80)),
    Case("decoder", "large", "float32", ALL, 4096, beams=8, aims=aims("time", 0.06, 0.10)),
    Case("load", "large", "float32", ALL, aims=aims("time", 0.7, 0.7)),
)
QUICK = (
    Case("encoder", "base", "float32", ALL, 256),
    Case("encoder", "base", "float32", ALL, 1024, grows_from=256),
    Case("encoder", "tiny", "bfloat16", TORCH, 256),
    Case("decoder", "tiny", "float32", ALL, 256, beams=4),
    Case("load", "tiny", "float32", ALL),
)
ON_CUDA = (TRANSFORMERS, "torch", "cupy", MACHINE)
CORE = ("torch", "cupy", MACHINE)
CUDA_ENCODER = (Aim("torch", "time", 0.333), Aim("torch", "share", 0.45), Aim("cupy", "share", 0.35))
CUDA = (
    Case("encoder", "large", "bfloat16", ON_CUDA, 16384, aims=CUDA_ENCODER),
    Case("core", "large", "bfloat16", CORE, 16384, aims=(Aim("cupy", "time", 1.3),)),
    Case("core", "large", "float32", CORE, 16384, aims=(Aim("cupy", "time", 1.0),)),
    Case("decoder", "large", "bfloat16", ON_CUDA, 4096, beams=8, aims=(Aim("torch", "time", 0.125),)),
    Case("decoder", "large", "bfloat16", ON_CUDA, 4096, beams=1),
)
TRAINING_AIMS = (Aim("torch", "time", 0.5), Aim("torch", "memory", 0.35))
TRAINING = (
    Case("training", "base", "float32", TORCH, 4096, aims=TRAINING_AIMS),
    Case("training", "base", "bfloat16", TORCH, 4096, aims=TRAINING_AIMS),
    Case("training", "base", "float32", TORCH, 16384, aims=TRAINING_AIMS),
)
SUITES = {"cpu": CPU, "quick": QUICK, "cuda": CUDA, "training": TRAINING}
DEVICES = {"cpu": "cpu", "quick": "cpu", "cuda": "cuda:0", "training": "cpu"}


def resize(cases: tuple[Case, ...], tokens: int | None = None, preset: str | None = None) -> tuple[Case, ...]:
    """Change the size of cases, drop duplicates that result, and drop the aims, which hold for the original size only.

    Args:
        cases: of a suite.
        tokens: new T of cases that have a source; None keeps it.
        preset: new model shape; None keeps it.
    """
    if tokens is None and preset is None:
        return cases
    resized = (
        dataclasses.replace(
            case, tokens=case.tokens and (tokens or case.tokens), preset=preset or case.preset, grows_from=None, aims=()
        )
        for case in cases
    )
    return tuple(dict.fromkeys(resized))
