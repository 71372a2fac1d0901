"""Measure each optimization of the backends on a CPU: times without and with it, in alternation.

    python benchmarks/ablation.py --list
    python benchmarks/ablation.py                # about ten minutes on two cores
    python benchmarks/ablation.py "packed weights"

Models have the large shape; the encoder has two layers. An optimization is switched off where the backend decides to
apply it, by replacing a constant or an operation.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pegasusx_torch.attention
import pegasusx_torch.backend
import pegasusx_torch.global_local
import pegasusx_torch.linear
from pegasusx_numpy import NumpyBackend

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, get_backend, listen
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.benchmarking.runner import round_order
from pegasusx_ref.benchmarking.tasks.timing import median_interval
from pegasusx_ref.model.weights import random_weights

STEPS = 16
WARM_UP_STEPS = 6  # weights are packed in them
NEVER = 10**12
ENCODER = PegasusXConfig.preset("large", encoder_layers=2, decoder_layers=0, vocab_size=2000)
DECODER = PegasusXConfig.preset("large", encoder_layers=1)


class Ablation(NamedTuple):
    """An optimization to switch off, the workload that shows it, and what replaces it."""

    name: str
    backend: str
    dtype: str
    work: str  # "encoder", or the number of beams
    without: tuple[tuple[Any, str, Any], ...]  # objects, their attributes, and the replacements


def numpy_ablation(name: str, work: str, *operations: str) -> Ablation:
    """Describe an optimization of the NumPy backend that golden operations replace."""
    golden = tuple((NumpyBackend, operation, GoldenBackend.__dict__[operation]) for operation in operations)
    return Ablation(name, "numpy", "float32", work, golden)


torch_attention, torch_backend = pegasusx_torch.attention, pegasusx_torch.backend.TorchBackend
torch_core = pegasusx_torch.global_local
torch_linear = pegasusx_torch.linear
ABLATIONS = (
    numpy_ablation(
        "all optimizations",
        "encoder",
        "apply_in_chunks",
        "linear",
        "linear_full_precision",
        "global_local_attention",
        "activation",
    ),
    numpy_ablation("parallel heads and blocks", "encoder", "global_local_attention"),
    numpy_ablation("parallel chunks of tokens", "encoder", "apply_in_chunks", "linear", "linear_full_precision"),
    numpy_ablation("parallel activations", "encoder", "activation"),
    numpy_ablation("memory used again", "encoder", "workspace"),
    numpy_ablation("all optimizations", "1", "linear", "linear_full_precision", "attention", "lay_out"),
    numpy_ablation("layout of keys and values", "1", "lay_out"),
    numpy_ablation("all optimizations", "8", "linear", "linear_full_precision", "attention", "lay_out"),
    numpy_ablation("weights as small matrices", "8", "linear", "linear_full_precision"),
    numpy_ablation("keys as small matrices", "8", "attention"),
    numpy_ablation("layout of keys and values", "8", "lay_out"),
    Ablation(
        "memory used again", "torch", "float32", "encoder", ((torch_backend, "workspace", GoldenBackend.workspace),)
    ),
    Ablation("global parts merged", "torch", "float32", "encoder", ((torch_core, "context_and_log_sums", None),)),
    Ablation("converted to float32", "torch", "bfloat16", "encoder", ((torch_linear, "IS_BFLOAT16_EMULATED", False),)),
    Ablation("chunks of tokens", "torch", "float32", "encoder", ((pegasusx_torch.backend, "MAX_CHUNK_TOKENS", NEVER),)),
    Ablation("oneDNN instead of MKL", "torch", "float32", "encoder", ((torch_linear, "IS_MKL_SLOW", False),)),
    Ablation("attention core by NumPy", "torch", "float32", "encoder", ((torch_core, "IS_MKL_SLOW", False),)),
    Ablation(
        "attention head by head",
        "torch",
        "bfloat16",
        "encoder",
        ((torch_attention, "HAS_BFLOAT16_WITHOUT_AMX", False),),
    ),
    Ablation("oneDNN instead of MKL", "torch", "float32", "1", ((torch_linear, "IS_MKL_SLOW", False),)),
    Ablation(
        "small products for one row", "torch", "float32", "1", ((torch_linear, "gemv", torch_linear.onednn_linear),)
    ),
    Ablation(
        "layout of keys and values", "torch", "float32", "1", ((torch_backend, "lay_out", GoldenBackend.lay_out),)
    ),
    Ablation(
        "keys feature by feature",
        "torch",
        "float32",
        "1",
        ((pegasusx_torch.backend, "reads_keys_by_feature", lambda keys: False),),
    ),
    Ablation(
        "large pages for the keys",
        "torch",
        "float32",
        "1",
        ((pegasusx_torch.backend, "in_large_pages", lambda tensor: tensor.contiguous()),),
    ),
    Ablation(
        "attention head by head", "torch", "bfloat16", "1", ((torch_attention, "is_faster_by_heads", lambda q: False),)
    ),
    Ablation("packed weights", "torch", "bfloat16", "1", ((torch_linear, "MIN_ONEDNN_WEIGHT_SIZE", NEVER),)),
    Ablation("packed weights", "torch", "float32", "8", ((torch_linear, "CALLS_BEFORE_PACKING", NEVER),)),
    Ablation(
        "layout of keys and values", "torch", "float32", "8", ((torch_backend, "lay_out", GoldenBackend.lay_out),)
    ),
    Ablation(
        "keys feature by feature",
        "torch",
        "float32",
        "8",
        ((pegasusx_torch.backend, "reads_keys_by_feature", lambda keys: False),),
    ),
    Ablation("packed weights", "torch", "bfloat16", "8", ((torch_linear, "MIN_ONEDNN_WEIGHT_SIZE", NEVER),)),
)


def encoder_seconds(model: PegasusXForConditionalGeneration, tokens: int) -> float:
    """Time the encoder over one text."""
    ids = np.random.default_rng(0).integers(106, ENCODER.vocab_size, (1, tokens))
    start = time.perf_counter()
    model.encode(ids)
    return time.perf_counter() - start


def token_seconds(model: PegasusXForConditionalGeneration, tokens: int, beams: int) -> float:
    """Time one token of a search."""
    states = np.random.default_rng(0).standard_normal((1, tokens, DECODER.d_model), dtype=np.float32)
    times: list[float] = []
    with listen(lambda *_: times.append(time.perf_counter()), "lm_head"):
        model.generate(encoder_outputs=(states,), num_beams=beams, min_new_tokens=STEPS, max_new_tokens=STEPS)
    return median_interval(times, WARM_UP_STEPS)


def compare(ablation: Ablation, tokens: int, rounds: int) -> tuple[float, float]:
    """Return the median times without and with an optimization, each with its own model."""
    config = ENCODER if ablation.work == "encoder" else DECODER
    weights = random_weights(config, 0)
    run: Callable[[Any], float] = partial(encoder_seconds, tokens=tokens)
    if ablation.work != "encoder":
        run = partial(token_seconds, tokens=tokens, beams=int(ablation.work))
    ops = [get_backend(ablation.backend, "cpu", ablation.dtype) for _ in range(2)]
    models = [PegasusXForConditionalGeneration(config, weights, each) for each in ops]
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):  # the first one warms up
        for is_on in round_order([0, 1], number):
            with ExitStack() as stack:
                for replacement in () if is_on else ablation.without:
                    stack.enter_context(patch.object(*replacement))
                times[is_on].append(run(models[is_on]))
    without, with_it = (statistics.median(found[1:]) for found in times)
    return without, with_it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="optimizations to measure; the default is all")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--list", action="store_true", help="list the optimizations, then exit")
    args = parser.parse_args()
    known = sorted({ablation.name for ablation in ABLATIONS})
    if unknown := sorted({*args.names} - {*known}):
        parser.error(f"unknown: {', '.join(map(repr, unknown))}; choose from {', '.join(map(repr, known))}")
    print("| backend | dtype | work | optimization | without | with | ratio |\n|---|---|---|---|---|---|---|")
    for each in ABLATIONS:
        if args.names and each.name not in args.names:
            continue
        work = "encoder, 2 layers" if each.work == "encoder" else f"a token, {each.work} beam{'s' * (each.work != '1')}"
        row = f"| {each.backend} | {each.dtype} | {work} | {each.name} |"
        if args.list:
            print(row)
            continue
        without, with_it = compare(each, args.tokens, args.rounds)
        print(f"{row} {1e3 * without:.0f} ms | {1e3 * with_it:.0f} ms | {with_it / without:.2f} |", flush=True)


if __name__ == "__main__":
    main()
