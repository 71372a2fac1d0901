"""Measure documents a second in batches and one by one, beside transformers in the same batches.

python benchmarks/corpora.py descriptions build/demo/train.jsonl --out benchmarks/results/corpora.json
python benchmarks/corpora.py long --out benchmarks/results/corpora.json

`descriptions`: descriptions of Debian packages (tools/demo/corpus.py) with the embedded checkpoint and its settings.
`long`: drawn documents of 500 to 8,000 tokens with random weights of the base shape, 4 beams, 48 tokens each.

Every implementation has a process of its own; the processes take turns, a window of documents each, and a ratio is of
the whole time. Batches hold texts of similar length. Tokens are the same for all; tokenizing is not part of the time.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref import DEMO_CHECKPOINT, PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.benchmarking.facts import facts
from pegasusx_ref.benchmarking.workers import Worker

WINDOW = 256  # documents of a turn
LONG_SETTINGS: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 48, "min_new_tokens": 48}
Batch = dict[str, np.ndarray]
Generate = Callable[[Batch], Any]


def descriptions(path: Path, count: int) -> list[list[int]]:
    """Return the token ids of descriptions."""
    tokenizer = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    rows = path.read_text(encoding="utf-8").splitlines()[:count]
    return [tokenizer(json.loads(row)["description"])["input_ids"] for row in rows]


def long_documents(count: int) -> list[list[int]]:
    """Draw documents of 500 to 8,000 tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(106, 96103, rng.integers(500, 8001)).tolist() for _ in range(count)]


def batches(documents: list[list[int]], size: int, max_tokens: int) -> Iterator[Batch]:
    """Divide documents into padded batches of similar length, the longest first."""
    remaining = sorted(documents, key=len)
    while remaining:
        count = max(min(size, max_tokens // len(remaining[-1])), 1)
        chosen, remaining = remaining[-count:], remaining[:-count]
        ids = np.zeros((len(chosen), len(chosen[-1])), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, document in enumerate(chosen):
            ids[row, : len(document)], mask[row, : len(document)] = document, 1
        yield {"input_ids": ids, "attention_mask": mask}


def prepare(
    implementation: str, case: str, documents: list[list[int]], sizes: list[int], max_tokens: int
) -> Callable[[], dict[int, tuple[float, int]]]:
    """Load a model in a worker, and return a function that measures the next window in batches of each size."""
    generate = by_transformers(case) if implementation == "transformers" else by_backend(implementation, case)
    generate(next(batches([[200] * 40, [300] * 30], 2, 100)))
    window = WINDOW if case == "descriptions" else len(documents)
    windows = (documents[start : start + window] for start in range(0, len(documents), window))

    def measure() -> dict[int, tuple[float, int]]:
        found, chosen = {}, next(windows)
        for size in sizes:
            padded, start = 0, time.perf_counter()
            for batch in batches(chosen, size, max_tokens):
                padded += batch["input_ids"].size
                generate(batch)
            found[size] = (time.perf_counter() - start, padded)
        return found

    return measure


def by_backend(backend: str, case: str) -> Generate:
    if case == "descriptions":
        model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, backend)
        return lambda batch: model.generate(batch["input_ids"], batch["attention_mask"])
    config = PegasusXConfig.preset("base")
    large = PegasusXForConditionalGeneration.from_random(config, backend=backend, dtype="float32")
    return lambda batch: large.generate(batch["input_ids"], batch["attention_mask"], **LONG_SETTINGS)


def by_transformers(case: str) -> Generate:
    import torch
    from transformers import PegasusXConfig as Config
    from transformers import PegasusXForConditionalGeneration as Model

    settings: dict[str, Any] = {}
    if case == "descriptions":
        model = Model.from_pretrained(DEMO_CHECKPOINT, dtype=torch.float32).eval()
    else:
        model, settings = Model(Config(**PegasusXConfig.preset("base").to_dict())).eval(), LONG_SETTINGS

    def generate(batch: Batch) -> Any:
        with torch.inference_mode():
            return model.generate(**{name: torch.from_numpy(array) for name, array in batch.items()}, **settings)

    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["descriptions", "long"])
    parser.add_argument("texts", type=Path, nargs="?", help="JSON lines with a field description")
    parser.add_argument("--count", type=int, help="documents; 2,000 descriptions or 64 long ones if left out")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batch-tokens", type=int, default=2**15)
    parser.add_argument("--implementations", nargs="+", default=["numpy", "torch", "transformers"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    documents = (
        descriptions(args.texts, args.count or 2000)
        if args.case == "descriptions"
        else long_documents(args.count or 64)
    )
    kinds = [(name, size) for name in args.implementations for size in (1, args.batch_size)]
    seconds, padded = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0)
    sizes = [1, args.batch_size]
    workers = {
        name: Worker(prepare, name, args.case, documents, sizes, args.batch_tokens) for name in args.implementations
    }
    window = WINDOW if args.case == "descriptions" else len(documents)
    for _ in range(0, len(documents), window):
        for name, worker in workers.items():
            for size, (duration, tokens) in worker.run().items():
                seconds[name, size] += duration
                padded[name, size] += tokens
                print(name, size, f"{duration:.2f} s", flush=True)
    for worker in workers.values():
        with closing(worker):
            pass
    num_tokens = sum(map(len, documents))
    rows = {
        f"{name}, {'one by one' if size == 1 else f'batches of {size}'}": {
            "documents_per_second": len(documents) / seconds[name, size],
            "ratio_to_one_by_one": seconds[name, 1] / seconds[name, size],
            "padding": 1 - num_tokens / padded[name, size],
        }
        for name, size in kinds
    }
    result = {"documents": len(documents), "tokens": num_tokens, "batch_tokens": args.batch_tokens, "rows": rows}
    print(json.dumps(result, indent=1))
    if args.out:
        results = json.loads(args.out.read_text()) if args.out.exists() else {}
        results |= {"facts": facts(), args.case: result}
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
