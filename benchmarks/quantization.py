"""Measure what quantized weights cost: errors by layer, ROUGE, bytes; with --timings, time and memory.

    python tools/demo/corpus.py build/demo                              # the 500 test pairs, by apt of Debian 12
    python benchmarks/quantization.py build/demo/test.jsonl             # five minutes on two cores
    python benchmarks/quantization.py build/demo/test.jsonl --timings   # on a quiet machine; ten minutes

All of it is the embedded checkpoint. Results are merged into --out, and printed as tables.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref import DEMO_CHECKPOINT, PegasusTokenizer, PegasusXForConditionalGeneration, pipeline, record
from pegasusx_ref.benchmarking.facts import facts
from pegasusx_ref.benchmarking.memory import memory_meter
from pegasusx_ref.rendering.tables import size

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "demo"))
from corpus import Pair, load_pairs  # noqa: E402
from evaluate import KINDS, interval, rouge  # noqa: E402

NUM_ERROR_PAIRS = 20
BATCH_SIZE = 8
NUM_TIMED, REPETITIONS = 5, 3
TRACED = ("*.tokens.output", "encoder.layer_norm", "decoder.layers.?.output", "decoder.layer_norm", "lm_head")


class Variant(NamedTuple):
    """A backend, a dtype, and a quantization."""

    backend: str
    dtype: str
    quantization: str | None = None

    @property
    def name(self) -> str:
        return self.quantization or self.dtype

    def load(self) -> PegasusXForConditionalGeneration:
        return PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, **self._asdict())


EXACT = Variant("golden", "float64")
QUANTIZED = ("int8", "nf4", "nf4-double", "fp4")
VARIANTS = (
    Variant("numpy", "float32"),
    Variant("torch", "bfloat16"),
    *(Variant("numpy", "float32", kind) for kind in QUANTIZED),
)
TIMED = (*VARIANTS, Variant("torch", "float32"), *(Variant("torch", "float32", kind) for kind in QUANTIZED))


def relative_errors(models: dict[Variant, PegasusXForConditionalGeneration], pairs: list[Pair]) -> dict[str, Any]:
    """Compute each variant's |x - exact| / |exact| of every layer's output, with Euclidean norms over all pairs."""
    tokenizer = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    sums: dict[Variant, dict[str, np.ndarray]] = {variant: {} for variant in models}
    for pair in pairs:
        ids, target = (np.array(tokenizer([text])["input_ids"]) for text in (pair.description, pair.synopsis))
        shifted = np.c_[np.zeros((1, 1), dtype=target.dtype), target[:, :-1]]
        traces = {}
        for variant, model in models.items():
            with record(*TRACED) as trace:
                model(ids, decoder_input_ids=shifted)
            traces[variant] = {name: model.ops.to_numpy(x).astype(np.float64) for name, x in trace.items()}
        for variant, trace in traces.items():
            for name, exact in traces[EXACT].items():
                squares = np.array([((trace[name] - exact) ** 2).sum(), (exact**2).sum()])
                sums[variant][name] = sums[variant].get(name, 0) + squares
    return {
        variant.name: {name: float(f"{np.sqrt(error / total):.3g}") for name, (error, total) in found.items()}
        for variant, found in sums.items()
        if variant != EXACT
    }


def bytes_on_disk(model: PegasusXForConditionalGeneration) -> int:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return (Path(folder) / "model.safetensors").stat().st_size


def rouge_of(model: PegasusXForConditionalGeneration, pairs: list[Pair]) -> np.ndarray:
    """Compute ROUGE of the summaries that the checkpoint's own settings give, 4 beams (N, 3)."""
    summarizer = pipeline("summarization", model, tokenizer=DEMO_CHECKPOINT)
    found: Any = summarizer([pair.description for pair in pairs], batch_size=BATCH_SIZE)
    return rouge([pair.synopsis for pair in pairs], [summary["summary_text"] for summary in found])


def timed(variant: Variant, descriptions: list[str]) -> dict[str, float]:
    """Measure in a fresh process: tokens a second of greedy decoding, and the peak of memory with the weights."""
    if variant.backend == "torch":
        import torch  # noqa: F401 - its own memory is not the model's
    tokenizer = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    meter = memory_meter(variant.backend, "cpu")
    meter.reset()
    model = variant.load()
    batches = [np.array(tokenizer([text])["input_ids"]) for text in descriptions]
    rates = []
    for _ in range(REPETITIONS + 1):  # the first one warms up
        start, count = perf_counter(), 0
        for ids in batches:
            count += model.generate(ids, num_beams=1, min_new_tokens=32, max_new_tokens=32).shape[1] - 1
        rates.append(count / (perf_counter() - start))
    return {"tokens_per_second": round(float(np.median(rates[1:])), 1), "peak_bytes": meter.peak() or 0}


def spread(pairs: list[Pair], count: int) -> list[Pair]:
    """Select about so many pairs, of all lengths."""
    return pairs[:: max(1, len(pairs) // count)]


def tables(results: dict[str, Any]) -> str:
    """Format the results in Markdown."""
    lines = [
        "| weights | on disk | ROUGE-1 | ROUGE-2 | ROUGE-L | ROUGE-L less float32's |",
        "|---|---|---|---|---|---|",
    ]
    show = "{0[0]:.2f} [{0[1][0]:.1f}, {0[1][1]:.1f}]".format
    for name, found in results["rouge"].items():
        scores = " | ".join(map(show, found.values()))
        lines.append(f"| {name} | {size(results['bytes_on_disk'][name])} | {scores} |")
    lines += ["", f"| output of | {' | '.join(results['errors'])} |", "|---" * (len(results["errors"]) + 1) + "|"]
    for place in next(iter(results["errors"].values())):
        cells = " | ".join(f"{errors[place]:.1e}" for errors in results["errors"].values())
        lines.append(f"| `{place}` | {cells} |")
    if "timings" in results:
        lines += ["", "| backend | weights | tokens a second | peak memory |", "|---|---|---|---|"]
        for row in results["timings"]["rows"]:
            peak = size(row["peak_bytes"])
            lines.append(f"| {row['backend']} | {row['weights']} | {row['tokens_per_second']} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--timings", action="store_true", help="measure time and memory instead of the rest")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "quantization.json")
    args = parser.parse_args()
    pairs = sorted(load_pairs(args.pairs), key=lambda pair: len(pair.description))  # batches of little padding
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    if args.timings:
        rows, context = [], multiprocessing.get_context("spawn")
        for variant in TIMED:
            with context.Pool(1) as pool:
                found = pool.apply(timed, (variant, [pair.description for pair in spread(pairs, NUM_TIMED)]))
            rows.append({"backend": variant.backend, "weights": variant.name, **found})
        results["timings"] = {"facts": facts(), "rows": rows}
    else:
        models = {variant: variant.load() for variant in (EXACT, *VARIANTS)}
        results |= {
            "facts": facts(),
            "pairs": len(pairs),
            "errors": relative_errors(models, spread(pairs, NUM_ERROR_PAIRS)),
        }
        results["bytes_on_disk"] = {variant.name: bytes_on_disk(models[variant]) for variant in VARIANTS}
        scores, rng = {variant.name: rouge_of(models[variant], pairs) for variant in VARIANTS}, np.random.default_rng(0)
        columns = {name: [*x.T, (x - scores["float32"])[:, -1]] for name, x in scores.items()}
        results["rouge"] = {
            name: {
                kind: [round(float(x.mean()), 2), interval(x, rng)]
                for kind, x in zip((*KINDS, "rougeL_difference"), arrays, strict=True)
            }
            for name, arrays in columns.items()
        }
    args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(tables(results))


if __name__ == "__main__":
    main()
