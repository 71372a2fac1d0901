"""Beam search on a CPU with packed weights and without: milliseconds a token of the large decoder, in alternation.

python benchmarks/few_rows.py --beams 4 8 --dtype float32
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import pegasusx_torch.products as products

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, get_backend
from pegasusx_ref.weights import random_weights

FEW_TOKENS, MANY_TOKENS = 4, 16


def per_token(model: PegasusXForConditionalGeneration, states: np.ndarray, beams: int) -> float:
    """Time a token as the difference of a long and a short text; the text before packs what is to be packed."""

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        limits: dict[str, Any] = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        model.generate(encoder_outputs=(states,), num_beams=beams, **limits)
        return time.perf_counter() - start

    seconds(2 * products.PATIENCE)
    return (seconds(MANY_TOKENS) - seconds(FEW_TOKENS)) / (MANY_TOKENS - FEW_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beams", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config = PegasusXConfig.preset("large", encoder_layers=1)
    weights = random_weights(config, 0)
    states = np.random.default_rng(0).standard_normal((1, args.tokens, config.d_model)).astype(np.float32)
    for beams in args.beams:
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(args.repeats):
            for is_packed, found in times.items():
                products.HAS_ONEDNN = is_packed
                ops = get_backend("torch", "cpu", args.dtype)
                found.append(per_token(PegasusXForConditionalGeneration(config, weights, ops), states, beams))
        plain, packed = (1e3 * statistics.median(found) for found in times.values())
        print(f"{args.dtype}, {beams} beams: {plain:.0f} ms, packed {packed:.0f} ms, ratio {packed / plain:.2f}")


if __name__ == "__main__":
    main()
