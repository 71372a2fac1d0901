"""The suites: lists of cases for a CPU, for a quick look, for a CUDA device, and for training."""

import dataclasses

from pegasusx_ref.benchmarking.cases import COMPILED, MACHINE, TRANSFORMERS, Aim, Case

ALL = (TRANSFORMERS, "torch", "numpy", MACHINE)
TORCH = (TRANSFORMERS, "torch", MACHINE)
OURS = ("torch", "numpy", MACHINE)


def aims(figure: str, torch: float, numpy: float) -> tuple[Aim, Aim]:
    """Set the aims for one metric of both CPU backends."""
    return Aim("torch", figure, torch), Aim("numpy", figure, numpy)


LONG_TEXT = (*aims("share", 0.85, 0.78), *aims("memory", 0.35, 0.50), *aims("growth", 4.3, 4.3))
VERY_LONG_TEXT = (*aims("growth", 8.4, 8.4), *aims("memory growth", 8.4, 8.4))
CPU = (
    Case("encoder", "large", "float32", ALL, 1024),
    Case("encoder", "large", "float32", (TRANSFORMERS, COMPILED, *ALL[1:]), 4096, aims=aims("share", 0.85, 0.78)),
    Case("encoder", "large", "float32", ALL, 8192),
    Case("encoder", "large", "float32", ALL, 16384, grows_from=4096, aims=LONG_TEXT),
    Case("encoder", "base", "bfloat16", TORCH, 4096, aims=(Aim("torch", "share", 0.55),)),
    Case("encoder", "base", "float32", OURS, 16384),
    Case("encoder", "base", "float32", OURS, 131072, grows_from=16384, aims=VERY_LONG_TEXT),
    Case("decoder", "large", "float32", ALL, 4096, beams=1, aims=aims("share", 0.85, 0.85)),
    Case("decoder", "large", "float32", ALL, 4096, beams=8, aims=aims("share", 0.60, 0.55)),
    Case("load", "large", "float32", ALL, aims=aims("time", 0.7, 0.7)),
    Case("texts", "base", "float32", ALL[:-1], 500, beams=4, texts=16, aims=aims("time", 0.4, 0.5)),
    Case("texts", "tiny", "float32", (*ALL[:-1], "golden"), 40, beams=4, aims=aims("time", 1.0, 1.0)),
    Case("start", "demo", "float32", ALL[:-1], aims=aims("seconds", 0.6, 0.45)),
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
    Case("training", "base", "float32", TORCH, 128, texts=32, aims=TRAINING_AIMS),
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
        dataclasses.replace(case, aims=())
        if case.kind == "start"
        else dataclasses.replace(
            case, tokens=case.tokens and (tokens or case.tokens), preset=preset or case.preset, grows_from=None, aims=()
        )
        for case in cases
    )
    unique: dict[str, Case] = {}
    for case in resized:
        unique.setdefault(case.name, case)
    return tuple(unique.values())
