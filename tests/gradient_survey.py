"""Verify stock transformers' backward passes that are drawn at random: python tests/gradient_survey.py [RUNS] [SEED].

Each run is another configuration, input, loss, dtype and set of shown tensors. Prints JSON with the false alarms.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from alarm_survey import draw_config, draw_inputs
from backend_parameters import reference
from fault_table import deterministic_torch, is_shown
from hf_reference import eager_hf_reference

from pegasusx_ref import PegasusXConfig
from pegasusx_ref.verification import Report, from_transformers, verify

DTYPES = {"float64": 1, "float32": 4, "bfloat16": 2}  # and the share of the runs
SHOWN = ("all", "all", "fused", "states", "some")


def draw_batch(rng: np.random.Generator, config: PegasusXConfig) -> dict[str, Any]:
    """Draw inputs, a target's mask in half of the runs, labels of which some are -100, and a label smoothing."""
    inputs = draw_inputs(rng, config)
    B, L = inputs["decoder_input_ids"].shape
    if rng.random() < 0.5:
        inputs["decoder_attention_mask"] = np.arange(L) < rng.integers(1, L + 1, (B, 1))
    labels = rng.integers(0, config.vocab_size, (B, L))
    labels[rng.random((B, L)) < 0.3 * rng.integers(2)] = -100
    labels[0, 0] = 0
    return inputs | {"labels": labels, "label_smoothing": float(rng.choice([0.0, 0.1]))}


def keeps(rng: np.random.Generator, shown: str, name: str) -> bool:
    """Return whether an implementation shows a tensor or gradient."""
    fused = name.removesuffix(".grad").endswith(("scores", "probs"))
    return {
        "all": True,
        "fused": not fused,
        "states": is_shown(name.removesuffix(".grad")),
        "some": rng.random() < 0.7,
    }[shown]


def verify_run(number: int, seed: int) -> tuple[str, str, Report]:
    """Verify the run of a number."""
    rng = np.random.default_rng((seed, number))
    config, shares = draw_config(rng), np.array(list(DTYPES.values()))
    dtype, shown = str(rng.choice(list(DTYPES), p=shares / shares.sum())), str(rng.choice(SHOWN))
    import transformers

    golden, inputs = reference(config, number, dtype), draw_batch(rng, config)
    hf_model = eager_hf_reference(transformers, golden, dtype)
    with deterministic_torch():
        tensors: Mapping[str, np.ndarray] = from_transformers(hf_model)(inputs)
    kept = {name: tensors[name] for name in sorted(tensors) if keeps(rng, shown, name)}
    known = "transformers" if dtype != "float64" else ()
    return dtype, shown, verify(golden, kept, inputs, dtype, known, gradients=True)


def main(runs: int, seed: int) -> None:
    """Verify all runs and print the results."""
    alarms: list[dict[str, Any]] = []
    counts, largest, num_gradients = Counter[str](), dict.fromkeys(DTYPES, 0.0), 0
    for number in range(runs):
        dtype, shown, report = verify_run(number, seed)
        counts.update((dtype, f"shown: {shown}"))
        gradients = [check for check in report.table if check.name.endswith(".grad")]
        num_gradients += len(gradients)
        largest[dtype] = max(largest[dtype], *(check.rho for check in gradients))
        if not report.passed:
            first = report.findings[0].first
            alarms.append({"run": number, "dtype": dtype, "shown": shown, "first": first._asdict()})
            print(alarms[-1], file=sys.stderr, flush=True)
    found = {"runs": runs, "seed": seed, "gradients": num_gradients, "alarms": alarms, "largest_rho": largest}
    print(json.dumps(found | {"counts": counts}, indent=1))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]), *(200, 0)[len(sys.argv) - 1 :])
