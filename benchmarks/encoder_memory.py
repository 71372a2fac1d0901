"""Measure time and peak memory of the encoder above the weights: python benchmarks/encoder_memory.py --help.

Prints one JSON object. The peak is the kernel's own figure for the process, less what was resident before.
"""

import json
import re
import time
from pathlib import Path

import click
import numpy as np

from pegasusx_ref import PegasusXConfig, PegasusXModel


def memory_mib(figure: str) -> float:
    """Read VmRSS (resident now) or VmHWM (its peak) of this process alone."""
    return int(re.findall(rf"{figure}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from what is resident now


@click.command()
@click.option("--preset", default="large", show_default=True, help="tiny, base or large.")
@click.option("--layers", type=int, help="Encoder layers, if not the preset's.")
@click.option("--tokens", default=16384, show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--activation", default="relu", show_default=True)
@click.option("--backend", default="numpy", show_default=True)
def main(preset: str, layers: int | None, tokens: int, dtype: str, activation: str, backend: str) -> None:
    config = PegasusXConfig.preset(preset, activation_function=activation, decoder_layers=0)
    if layers is not None:
        config = config.replace(encoder_layers=layers)
    model = PegasusXModel.from_random(config, backend=backend, dtype=dtype)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, tokens))
    model.encode(ids[:, :64])  # what a library sets up at its first use is not the encoder's
    forget_peak()
    before, started = memory_mib("VmRSS"), time.perf_counter()
    model.encode(ids)
    seconds, above = time.perf_counter() - started, memory_mib("VmHWM") - before
    result = {
        "preset": preset,
        "encoder_layers": config.encoder_layers,
        "activation": activation,
        "backend": backend,
        "dtype": dtype,
        "tokens": tokens,
        "weights_mib": round(model.num_parameters() * np.dtype(dtype).itemsize / 2**20),
        "resident_before_mib": round(before),
        "peak_above_mib": round(above),
        "seconds": round(seconds, 2),
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
