"""Verify correct runs that are drawn at random, and count false alarms: python tests/alarm_survey.py [RUNS] [SEED].

Each run is another configuration, input, implementation, arithmetic and set of shown tensors. Prints JSON.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from backend_parameters import random_model, reference
from fault_table import is_shown
from hf_reference import eager_hf_reference
from other_orders import ByThrees, InAnotherOrder, Reordered

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.golden.feed_forward import ACTIVATIONS
from pegasusx_ref.verification import Report, from_backend, from_transformers, verify

SHOWN = ("all", "fused", "states", "layers", "logits", "some")
CANDIDATES = {  # and the share of the runs
    ("golden", "float64"): 1,
    ("numpy", "float32"): 4,
    ("numpy", "float64"): 1,
    ("torch", "float32"): 4,
    ("torch", "float64"): 1,
    ("torch", "bfloat16"): 2,
    ("torch", "float16"): 2,
    ("reversed", "float32"): 2,
    ("by threes", "float32"): 1,
    ("transformers", "float64"): 1,
    ("transformers", "float32"): 2,
    ("transformers", "bfloat16"): 2,
}


def draw_config(rng: np.random.Generator) -> PegasusXConfig:
    """Draw a model: one in ten is wide."""
    D = int(rng.choice([256, 512, 768, 1024]) if rng.random() < 0.1 else rng.choice([8, 16, 24, 32, 64, 96, 128]))
    heads = [h for h in (1, 2, 3, 4, 8, 12, 16) if D % h == 0 and D // h >= 4]
    half = int(rng.choice([1, 2, 4, 8, 16, 64]))
    return PegasusXConfig(
        vocab_size=int(rng.integers(20, 300)),
        d_model=D,
        encoder_layers=int(rng.integers(0, 4)),
        decoder_layers=int(rng.integers(0, 4)),
        encoder_attention_heads=int(rng.choice(heads)),
        decoder_attention_heads=int(rng.choice(heads)),
        encoder_ffn_dim=int(rng.integers(1, 4 * D)),
        decoder_ffn_dim=int(rng.integers(1, 4 * D)),
        num_global_tokens=int(rng.choice([1, 2, 8, 32])),
        block_size=2 * half,
        stagger_local_blocks=bool(rng.random() < 0.8),
        activation_function=str(rng.choice(sorted(ACTIVATIONS))),
        layer_norm_eps=float(rng.choice([1e-5, 1e-6, 1e-12])),
        scale_embedding=bool(rng.random() < 0.8),
        tie_word_embeddings=bool(rng.random() < 0.8),
        init_std=float(10 ** rng.uniform(-2, 0)),
    )


def draw_inputs(rng: np.random.Generator, config: PegasusXConfig) -> dict[str, Any]:
    """Draw a batch; half of them have padding."""
    B, T, L = int(rng.integers(1, 4)), int(np.ceil(10 ** rng.uniform(0, 2.8))), int(rng.integers(1, 20))
    inputs: dict[str, Any] = {
        "input_ids": rng.integers(2, config.vocab_size, (B, T)),
        "decoder_input_ids": rng.integers(2, config.vocab_size, (B, L)),
    }
    if rng.random() < 0.5:
        inputs["attention_mask"] = np.arange(T) < rng.integers(1, T + 1, (B, 1))
    return inputs


def candidate(kind: str, dtype: str, config: PegasusXConfig, seed: int) -> Any:
    """Build a correct implementation."""
    if kind == "transformers":
        import transformers

        return from_transformers(eager_hf_reference(transformers, reference(config, seed, dtype), dtype))
    if kind in ("reversed", "by threes"):
        model = random_model(config, seed, "numpy", "float32")
        order = Reordered if kind == "reversed" else ByThrees
        return from_backend(PegasusXForConditionalGeneration(config, model.state_dict(), InAnotherOrder(order)))
    return from_backend(random_model(config, seed, kind, dtype))


def is_between_layers(name: str) -> bool:
    """Return whether a tensor is a layer's output, an encoder's or decoder's result, or the logits."""
    return name in ("encoder.layer_norm", "decoder.layer_norm", "lm_head") or name.endswith("output")


def shown_tensors(rng: np.random.Generator, tensors: Mapping[str, np.ndarray], shown: str) -> dict[str, np.ndarray]:
    """Keep the tensors that an implementation shows."""
    kept: Callable[[str], bool] = {
        "all": lambda _: True,
        "fused": lambda name: not name.endswith(("scores", "probs")),
        "states": is_shown,
        "layers": is_between_layers,
        "logits": lambda name: name == "lm_head",
        "some": lambda name: rng.random() < 0.5 or name == "lm_head",
    }[shown]
    return {name: tensors[name] for name in tensors if kept(name)}


def verify_run(number: int, seed: int) -> tuple[str, str, str, Report]:
    """Verify the run of a number."""
    rng = np.random.default_rng((seed, number))
    config, shares = draw_config(rng), np.array(list(CANDIDATES.values()))
    kind, dtype = list(CANDIDATES)[int(rng.choice(len(shares), p=shares / shares.sum()))]
    inputs, shown = draw_inputs(rng, config), str(rng.choice(SHOWN))
    tensors = dict(candidate(kind, dtype, config, number)(inputs))
    known = () if kind != "transformers" or dtype == "float64" else "transformers"
    tensors = shown_tensors(rng, tensors, shown)
    return kind, dtype, shown, verify(reference(config, number, dtype), tensors, inputs, dtype, known)


def main(runs: int, seed: int) -> None:
    """Verify all runs and print the results."""
    alarms: list[dict[str, Any]] = []
    counts, largest, num_tensors = Counter[str](), {"direct": 0.0, "not direct": 0.0}, 0
    for number in range(runs):
        kind, dtype, shown, report = verify_run(number, seed)
        counts.update((f"{kind} {dtype}", f"shown: {shown}"))
        num_tensors += len(report.table)
        for check in report.table:
            key = "direct" if check.is_direct else "not direct"
            largest[key] = max(largest[key], 0.0 if check.verdict == "known" else check.rho)
        if not report.passed:
            first = report.findings[0].first
            alarms.append({"run": number, "kind": f"{kind} {dtype}", "shown": shown, "first": first._asdict()})
            print(alarms[-1], file=sys.stderr, flush=True)
        if number % 100 == 99:
            print(f"{number + 1} runs, {len(alarms)} alarms", file=sys.stderr, flush=True)
    found = {"runs": runs, "seed": seed, "tensors": num_tensors, "alarms": alarms, "largest_rho": largest}
    print(json.dumps(found | {"counts": counts}, indent=1))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]), *(2000, 0)[len(sys.argv) - 1 :])
