"""What each of the backends' ways to be fast is worth: times with it and without it, in alternation.

    python benchmarks/with_and_without.py --list
    python benchmarks/with_and_without.py                # about ten minutes on two cores
    python benchmarks/with_and_without.py "packed weights"

Models have the large shape, the encoder two layers of it. A way is switched off where the backend decides for it, by
replacing a constant or an operation.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pegasusx_torch.attention
import pegasusx_torch.backend
import pegasusx_torch.global_local
import pegasusx_torch.products
from pegasusx_numpy import NumpyBackend

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, get_backend, listen
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.benchmarking.running import in_turn
from pegasusx_ref.model.weights import random_weights

STEPS = 16
NEVER = 10**12
ENCODER = PegasusXConfig.preset("large", encoder_layers=2, decoder_layers=0, vocab_size=2000)
DECODER = PegasusXConfig.preset("large", encoder_layers=1)


class Way(NamedTuple):
    """A way to be fast: what it is called, where it shows, and what replaces it."""

    name: str
    backend: str
    dtype: str
    work: str  # "encoder", or the number of beams
    without: tuple[tuple[Any, str, Any], ...]  # objects, their attributes, and what these are without it


def numpy_way(name: str, work: str, *operations: str) -> Way:
    """Take golden operations in the place of the NumPy backend's."""
    golden = tuple((NumpyBackend, operation, GoldenBackend.__dict__[operation]) for operation in operations)
    return Way(name, "numpy", "float32", work, golden)


torch_attention, torch_backend = pegasusx_torch.attention, pegasusx_torch.backend.TorchBackend
torch_core = pegasusx_torch.global_local
torch_products = pegasusx_torch.products
WAYS = (
    numpy_way(
        "all of it",
        "encoder",
        "apply_in_chunks",
        "linear",
        "linear_full_precision",
        "global_local_attention",
        "activation",
    ),
    numpy_way("heads and blocks on threads", "encoder", "global_local_attention"),
    numpy_way("rows on threads", "encoder", "apply_in_chunks", "linear", "linear_full_precision"),
    numpy_way("activations on threads", "encoder", "activation"),
    numpy_way("all of it", "1", "linear", "linear_full_precision", "attention", "contiguous"),
    numpy_way("keys laid out by heads", "1", "contiguous"),
    numpy_way("all of it", "8", "linear", "linear_full_precision", "attention", "contiguous"),
    numpy_way("weights in small matrices", "8", "linear", "linear_full_precision"),
    numpy_way("keys in small matrices", "8", "attention"),
    numpy_way("keys laid out by heads", "8", "contiguous"),
    Way("some tokens at a time", "torch", "float32", "encoder", ((pegasusx_torch.backend, "ROWS", NEVER),)),
    Way("oneDNN instead of MKL", "torch", "float32", "encoder", ((torch_products, "IS_MKL_SLOW", False),)),
    Way("NumPy's core instead of MKL's", "torch", "float32", "encoder", ((torch_core, "IS_MKL_SLOW", False),)),
    Way("attention by heads", "torch", "bfloat16", "encoder", ((torch_attention, "HAS_BFLOAT16_PRODUCTS", False),)),
    Way("oneDNN instead of MKL", "torch", "float32", "1", ((torch_products, "IS_MKL_SLOW", False),)),
    Way("a row in small products", "torch", "float32", "1", ((torch_products, "row_times", torch_products.product),)),
    Way("keys laid out by heads", "torch", "float32", "1", ((torch_backend, "contiguous", lambda self, x: x),)),
    Way("their large pages", "torch", "float32", "1", ((torch_backend, "contiguous", lambda self, x: x.contiguous()),)),
    Way("attention by heads", "torch", "bfloat16", "1", ((torch_attention, "is_faster_by_heads", lambda q: False),)),
    Way("packed weights", "torch", "bfloat16", "1", ((torch_products, "LARGE", NEVER),)),
    Way("packed weights", "torch", "float32", "8", ((torch_products, "PATIENCE", NEVER),)),
    Way("keys laid out by heads", "torch", "float32", "8", ((torch_backend, "contiguous", lambda self, x: x),)),
    Way("packed weights", "torch", "bfloat16", "8", ((torch_products, "LARGE", NEVER),)),
)


@contextmanager
def switched_off(way: Way) -> Iterator[None]:
    patches = [patch.object(*replacement) for replacement in way.without]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def encoder_seconds(model: PegasusXForConditionalGeneration, tokens: int) -> float:
    """Time the encoder over a text."""
    ids = np.random.default_rng(0).integers(106, ENCODER.vocab_size, (1, tokens))
    start = time.perf_counter()
    model.encode(ids)
    return time.perf_counter() - start


def token_seconds(model: PegasusXForConditionalGeneration, tokens: int, beams: int) -> float:
    """Time a token of a search, without those in which weights are packed."""
    states = np.random.default_rng(0).standard_normal((1, tokens, DECODER.d_model), dtype=np.float32)
    times: list[float] = []
    with listen(lambda *_: times.append(time.perf_counter()), "lm_head"):
        model.generate(encoder_outputs=(states,), num_beams=beams, min_new_tokens=STEPS, max_new_tokens=STEPS)
    return float(np.median(np.diff(times)[6:]))


def compare(way: Way, tokens: int, rounds: int) -> tuple[float, float]:
    """Give the median times without and with a way, each with a model of its own."""
    config = ENCODER if way.work == "encoder" else DECODER
    weights = random_weights(config, 0)
    run: Callable[[Any], float] = partial(encoder_seconds, tokens=tokens)
    if way.work != "encoder":
        run = partial(token_seconds, tokens=tokens, beams=int(way.work))
    models = {
        name: PegasusXForConditionalGeneration(config, weights, get_backend(way.backend, "cpu", way.dtype))
        for name in ("without", "with")
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):  # the first one warms up
        for name in in_turn(list(models), number):
            with switched_off(way) if name == "without" else nullcontext():
                times[name].append(run(models[name]))
    without, with_it = (statistics.median(found[1:]) for found in times.values())
    return without, with_it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="ways to compare; all where none is named")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--list", action="store_true", help="list the ways, and run nothing")
    args = parser.parse_args()
    known = sorted({way.name for way in WAYS})
    if unknown := sorted({*args.names} - {*known}):
        parser.error(f"no such way: {', '.join(map(repr, unknown))}; choose from {', '.join(map(repr, known))}")
    print("| backend | dtype | work | way | without | with | ratio |\n|---|---|---|---|---|---|---|")
    for way in WAYS:
        if args.names and way.name not in args.names:
            continue
        work = "encoder, 2 layers" if way.work == "encoder" else f"a token, {way.work} beam{'s' * (way.work != '1')}"
        row = f"| {way.backend} | {way.dtype} | {work} | {way.name} |"
        if args.list:
            print(row)
            continue
        without, with_it = compare(way, args.tokens, args.rounds)
        print(f"{row} {1e3 * without:.0f} ms | {1e3 * with_it:.0f} ms | {with_it / without:.2f} |", flush=True)


if __name__ == "__main__":
    main()
