"""Time and peak memory of beam search over a long input, with random weights of a published shape.

python benchmarks/long_generation.py --preset large --tokens 16384 --beams 8
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, listen


def mib(field: str) -> int:
    """Read a figure of this process's memory from Linux's /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="large")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--beams", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=16)
    args = parser.parse_args()
    config = PegasusXConfig.preset(args.preset)
    model = PegasusXForConditionalGeneration.from_random(config, backend=args.backend)
    before = mib("VmRSS")
    ids = np.random.default_rng(0).integers(106, config.vocab_size, (1, args.tokens))
    times = [time.perf_counter()]
    with listen(lambda *_: times.append(time.perf_counter()), "lm_head"):
        model.generate(ids, num_beams=args.beams, min_new_tokens=args.new_tokens, max_new_tokens=args.new_tokens)
    per_token = (times[-1] - times[1]) / (len(times) - 2)
    figures = {"before_mib": before, "peak_mib": mib("VmHWM"), "encoder_s": round(times[1] - times[0], 1)}
    print(json.dumps(vars(args) | figures | {"s_per_token": round(per_token, 2)}))


if __name__ == "__main__":
    main()
