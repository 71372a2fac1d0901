"""Measure what a search adds to a decode step: milliseconds per token with precomputed logits, in alternation.

python benchmarks/search_overhead.py --backend torch --dtype bfloat16 --beams 1 8
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np

from pegasusx_ref import GenerationConfig, get_backend
from pegasusx_ref.backend import Backend
from pegasusx_ref.generation import search
from pegasusx_ref.generation.search import on_host

VOCAB_SIZE, STEPS = 96103, 16


def per_token(ops: Backend, logits: list[Any], num_beams: int, is_on_device: bool) -> float:
    """Time one token with scores that stay on the device, or that are all copied to the host."""
    steps = iter(logits)
    config = GenerationConfig(num_beams=num_beams, max_new_tokens=STEPS, min_new_tokens=STEPS, forced_eos_token_id=1)
    start = time.perf_counter()
    if is_on_device:
        search(lambda ids_BL, visible: next(steps), 1, config, ops=ops)
    else:
        search(on_host(lambda ids_BL, visible: next(steps), ops), 1, config)
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    ops = get_backend(args.backend, args.device, args.dtype)
    rng = np.random.default_rng(0)
    for beams in args.beams:
        logits = [ops.asarray(3 * rng.standard_normal((1, beams, VOCAB_SIZE))) for _ in range(STEPS)]
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(args.repeats):
            for is_on_device, found in times.items():
                found.append(per_token(ops, logits, beams, is_on_device))
        host, device = (1e3 * statistics.median(found) for found in times.values())
        where = f"{args.backend} on {ops.device}, {args.dtype}, {beams} beams"
        print(f"{where}: on the host {host:.2f} ms, on the device {device:.2f} ms, ratio {device / host:.2f}")


if __name__ == "__main__":
    main()
