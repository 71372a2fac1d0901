"""Everything that needs a GPU, in one command: its tests, then times beside transformers and the device's limits.

    python benchmarks/gpu_check.py --out gpu.json

With --device cpu and a small --tokens the timings run anywhere, which says nothing but that they run.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, available_backends, get_backend
from pegasusx_ref.global_local import block_slices
from pegasusx_ref.weights import random_weights

TESTS = Path(__file__).parents[1] / "tests"


def facts(device: str) -> dict[str, Any]:
    """Name the device and the versions of what runs on it."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("pegasusx-ref", "numpy", "torch", "transformers", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["device"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        found["cuda"] = torch.version.cuda
    return found


def run_tests() -> dict[str, Any]:
    """Run tests/gpu, without what only the rest of the suite needs."""
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "--confcutdir", str(TESTS), str(TESTS / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    return {"returncode": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}


def seconds(call: Callable[[], Any], wait: Callable[[], Any], repeats: int = 5) -> float:
    """Take the median time of a call after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def waiter(backend: str, device: str) -> Callable[[], Any]:
    """Give what waits until the device is done."""

    def wait() -> None:
        if backend == "cupy":
            import cupy

            cupy.cuda.Device().synchronize()
        elif device != "cpu":
            torch.cuda.synchronize()

    return wait


def matmul_rate(device: str, dtype: str, size: int) -> float:
    """Measure torch's own rate in TFLOP/s."""
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    return 2 * size**3 / seconds(lambda: a @ a, waiter("torch", device)) / 1e12


def core_time(backend: str, device: str, dtype: str, tokens: int) -> float:
    """Time the attention core of a staggered layer of the large model."""
    ops: Any = get_backend(backend, device, dtype)
    rng = np.random.default_rng(0)

    def heads(length: int) -> Any:
        return ops.asarray(rng.standard_normal((1, length, 16, 64)).astype(np.float32)).swapaxes(1, 2)

    streams = [*(heads(tokens) for _ in range(3)), *(heads(128) for _ in range(3))]
    slices = block_slices(tokens, 512, staggered=True)
    return seconds(lambda: ops.global_local_attention(*streams, None, slices), waiter(backend, device))


def encoder_times(device: str, dtype: str, tokens: int, preset: str) -> dict[str, float]:
    """Time our encoder and transformers' on the same weights."""
    from transformers import PegasusXConfig as TheirConfig
    from transformers import PegasusXModel as TheirModel

    config = PegasusXConfig.preset(preset, decoder_layers=0, vocab_size=2000)
    weights = random_weights(config, 0, head=True)
    ids = np.random.default_rng(0).integers(106, 2000, (1, tokens))
    wait = waiter("torch", device)
    model = PegasusXForConditionalGeneration(config, weights, get_backend("torch", device, dtype))
    times = {"ours": seconds(lambda: model.encode(ids), wait, 3)}
    theirs = TheirModel(TheirConfig(**config.to_dict())).to(device, getattr(torch, dtype)).eval().encoder
    input_ids = torch.from_numpy(ids).to(device)
    with torch.inference_mode():
        times["transformers"] = seconds(lambda: theirs(input_ids=input_ids), wait, 3)
    layer = 2 * tokens * (4 * config.d_model**2 + 2 * config.d_model * config.encoder_ffn_dim)
    core = 4 * tokens * (config.block_size + 2 * config.num_global_tokens) * config.d_model
    times["tflops"] = config.encoder_layers * (layer + core) / times["ours"] / 1e12
    return times


def decoding_times(device: str, dtype: str, tokens: int, preset: str, beams: int) -> dict[str, float]:
    """Time a token of beam search, ours and transformers', without the encoder."""
    from transformers import PegasusXConfig as TheirConfig
    from transformers import PegasusXForConditionalGeneration as TheirModel
    from transformers.modeling_outputs import BaseModelOutput

    config = PegasusXConfig.preset(preset, encoder_layers=1)
    states = np.random.default_rng(0).standard_normal((1, tokens, config.d_model)).astype(np.float32)
    wait = waiter("torch", device)
    model = PegasusXForConditionalGeneration(
        config, random_weights(config, 0, head=True), get_backend("torch", device, dtype)
    )
    few, many = 4, 24

    def per_token(generate: Callable[[int], Any]) -> float:
        return (seconds(lambda: generate(many), wait, 3) - seconds(lambda: generate(few), wait, 3)) / (many - few)

    def ours(cache: str) -> float:
        settings: dict[str, Any] = {"num_beams": beams, "cache_implementation": cache}
        return per_token(
            lambda n: model.generate(encoder_outputs=(states,), min_new_tokens=n, max_new_tokens=n, **settings)
        )

    times = {"ours": ours("static"), "ours, caches that grow": ours("dynamic")}
    theirs = TheirModel(TheirConfig(**config.to_dict())).to(device, getattr(torch, dtype)).eval()
    encoded = torch.from_numpy(states).to(device, getattr(torch, dtype))
    settings = {"num_beams": beams, "do_sample": False}
    with torch.inference_mode():
        times["transformers"] = per_token(
            lambda n: theirs.generate(
                encoder_outputs=BaseModelOutput(encoded), min_new_tokens=n, max_new_tokens=n, **settings
            )
        )
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--preset", default="large")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--skip-tests", action="store_true")
    args = parser.parse_args()
    report: dict[str, Any] = facts(args.device)
    cases: list[tuple[str, Callable[[], Any]]] = []
    if not args.skip_tests:
        cases.append(("tests", run_tests))
    size = 8192 if args.device != "cpu" else 512
    for dtype in ("float32", "bfloat16"):
        cases.append((f"matmul TFLOP/s {dtype}", partial(matmul_rate, args.device, dtype, size)))
    for backend, dtype in (("torch", "float32"), ("torch", "bfloat16"), ("torch", "float16"), ("cupy", "float32")):
        if any(device.startswith(args.device.partition(":")[0]) for device in available_backends()[backend].devices):
            name = f"core s {backend} {dtype}"
            cases.append((name, partial(core_time, backend, args.device, dtype, args.tokens)))
    for dtype in ("bfloat16", "float32"):
        name = f"encoder s {dtype}"
        cases.append((name, partial(encoder_times, args.device, dtype, args.tokens, args.preset)))
    for beams in (1, 8):
        name = f"decoding s a token, {beams} beams, bfloat16"
        cases.append((name, partial(decoding_times, args.device, "bfloat16", args.tokens // 4, args.preset, beams)))
    for name, run in cases:
        try:
            report[name] = run()
        except Exception as error:  # one case that fails must not cost the others
            report[name] = f"{type(error).__name__}: {error}"
        print(name, report[name], flush=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")  # after every case: what is done is kept


if __name__ == "__main__":
    main()
