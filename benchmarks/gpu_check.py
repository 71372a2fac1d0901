"""Everything that needs a GPU, in one command: its tests, then the suite cuda of `pegasusx-ref bench`.

    python benchmarks/gpu_check.py --out gpu.json

The file is written after the tests and after each case; a run that was cut short goes on where it ended. With
--device cpu, --tokens and --preset tiny it runs anywhere, which says nothing but that it runs.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from pegasusx_ref.benchmarking import SUITES, facts, measured, report, resized, resumed, write_results
from pegasusx_ref.benchmarking.cases import PRESET_NAMES
from pegasusx_ref.errors import PegasusXError

TESTS = Path(__file__).parents[1] / "tests"


def positive(text: str) -> int:
    """Read a number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def run_tests() -> dict[str, Any]:
    """Run tests/gpu, without what only the rest of the suite needs."""
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "--confcutdir", str(TESTS), str(TESTS / "gpu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    return {"returncode": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tokens", type=positive, help="another length for all cases")
    parser.add_argument("--preset", choices=PRESET_NAMES, help="another model's shape for all cases")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="start anew where the file has results already")
    args = parser.parse_args()
    size = {"tokens": args.tokens, "preset": args.preset}
    settings = {"suite": "cuda", "device": args.device, "rounds": args.rounds} | size
    try:
        results = resumed(args.out, settings, facts(), shlex.join(sys.argv), args.fresh)
    except PegasusXError as error:
        parser.error(str(error))
    if not args.skip_tests and results.extra.get("tests", {}).get("returncode") != 0:
        results.extra["tests"] = run_tests()
        write_results(args.out, results)

    def watch(name: str, what: str, *_: int) -> None:
        print(f"{name}: {what}", file=sys.stderr, flush=True)

    try:
        for _ in measured(resized(SUITES["cuda"], **size), results, args.out, args.device, args.rounds, watch):
            pass  # each is in the file now
    except PegasusXError as error:
        raise SystemExit(f"gpu_check.py: error: {error}") from None
    print("\n".join(report(results)))
    if results.extra.get("tests", {}).get("returncode", 0) != 0:
        raise SystemExit("gpu_check.py: tests have failed")


if __name__ == "__main__":
    main()
