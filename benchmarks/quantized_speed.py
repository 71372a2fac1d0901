"""Measure quantized weights at the shape of the large model: time, memory, disk, beside float32 in the same rounds.

python benchmarks/quantized_speed.py --out benchmarks/results/quantized_speed.json

Each form of the weights is loaded in a process of its own, and the processes take turns: load, encode 2,048 tokens,
decode 24 tokens of one beam and of four over a source of 256. A ratio is the median of the rounds' ratios to float32.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pegasusx_ref import DEMO_CHECKPOINT, PegasusXConfig, PegasusXForConditionalGeneration, convert
from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.benchmarking.facts import facts
from pegasusx_ref.benchmarking.memory import resident_bytes
from pegasusx_ref.benchmarking.workers import Worker

FORMS = ("float32", "nf4", "nf4-double", "int8", "nf4+table", "nf4-double+table", "int8+table")
SHORT, LONG, TOKENS = 256, 2048, 24


def prepare(folder: str, backend: str) -> Callable[[], dict[str, float]]:
    """Load a model in a worker, and return a function that measures one round."""
    if "float32" not in folder:  # libraries and compiled loops are not the model's memory
        first = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, backend, quantization="int8")
        first.generate([[7]], max_new_tokens=2, num_beams=1)
    before = resident_bytes("VmRSS")
    model = load(folder, backend)
    memory = resident_bytes("VmRSS") - before

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        load(folder, backend)
        found = {"load": time.perf_counter() - start, "memory": memory}
        rng = np.random.default_rng(0)
        short, long = (rng.integers(106, model.config.vocab_size, (1, size)) for size in (SHORT, LONG))
        start = time.perf_counter()
        model.encode(long)
        found["encode"] = time.perf_counter() - start
        encoded = model.encode(short)
        for beams in (1, 4):
            times: list[float] = []
            settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
            model.generate(encoder_outputs=encoded, stopping_criteria=[clock(times)], **settings)
            found[f"decode {beams}"] = median(np.diff(times[2:]))
        return found

    return measure


def load(folder: str, backend: str) -> PegasusXForConditionalGeneration:
    """Load a model and read every weight, as the first step would."""
    model = PegasusXForConditionalGeneration.from_pretrained(folder, backend)
    for tensor in model._tensors.values():
        for part in (tensor.codes, tensor.absmax) if isinstance(tensor, QuantizedMatrix) else (tensor,):
            np.asarray(part).sum()
    return model


def clock(times: list[float]) -> Callable[..., np.ndarray]:
    """Return a stopping criterion that notes the time of each step and never stops."""

    def note(ids: Any, scores: Any) -> np.ndarray:
        times.append(time.perf_counter())
        return np.zeros(len(ids), dtype=bool)

    return note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="large")
    parser.add_argument("--backends", nargs="+", default=["numpy", "torch"])
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS, help="float32 is always among them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    forms = ["float32", *(form for form in args.forms if form != "float32")]
    results: dict[str, Any] = {}
    warnings.filterwarnings("ignore", message=".*converted without a tokenizer")
    with tempfile.TemporaryDirectory() as temporary:
        original = Path(temporary) / "float32"
        PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset(args.preset)).save_pretrained(original)
        for form in forms[1:]:
            kind, _, table = form.partition("+")
            convert(original, Path(temporary) / form, quantize=kind, quantize_embedding=bool(table))
        disk = {form: (Path(temporary) / form / "model.safetensors").stat().st_size for form in forms}
        for backend in args.backends:
            rounds: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
            workers = {form: Worker(prepare, str(Path(temporary) / form), backend) for form in forms}
            for _ in range(args.rounds):
                for form, worker in workers.items():
                    rounds[form].append(worker.run())
            for worker in workers.values():
                with closing(worker):
                    pass
            results[backend] = {form: summary(rounds[form], rounds["float32"]) for form in forms}
            for form in forms:
                results[backend][form]["disk"] = [disk[form], disk[form] / disk["float32"]]
                print(backend, form, {name: f"{a:.3g} ({b:.2f})" for name, (a, b) in results[backend][form].items()})
    if args.out:
        args.out.write_text(json.dumps({"facts": facts(), "results": results}, indent=1) + "\n")


def summary(rounds: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return the median of each figure, and of its ratios to the reference in the same rounds."""
    return {
        name: [
            median(r[name] for r in rounds),
            median(r[name] / f[name] for r, f in zip(rounds, reference, strict=True)),
        ]
        for name in rounds[0]
    }


if __name__ == "__main__":
    main()
