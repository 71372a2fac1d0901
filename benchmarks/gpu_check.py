"""Run the GPU tests, then the suite "cuda" of `pegasusx-ref bench`.

    python benchmarks/gpu_check.py --out gpu.json

The file is written after the tests and after each case; an interrupted run is resumed. With --device cpu, --tokens and
--preset tiny the script runs anywhere, as a check of itself.
"""

import argparse
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pegasusx_ref.benchmarking.facts import facts, usable_cores
from pegasusx_ref.benchmarking.report import report
from pegasusx_ref.benchmarking.runner import run_cases
from pegasusx_ref.benchmarking.storage import resume_results, write_results
from pegasusx_ref.benchmarking.suites import SUITES, resize
from pegasusx_ref.errors import PegasusXError
from pegasusx_ref.model.config import PRESETS

TESTS = Path(__file__).parents[1] / "tests"


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def run_tests() -> dict[str, Any]:
    """Run tests/gpu without the configuration of the other tests, whose dependencies may be missing.

    In several processes if pytest-xdist is there: most of their time is NVIDIA's compiler. Each test is printed when it
    has ended, so that the log of a run that is cut off says how far it came.
    """
    command = [sys.executable, "-P", "-m", "pytest", "-v", "-ra", "--confcutdir", str(TESTS), str(TESTS / "gpu")]
    command += ["-o", "addopts=--import-mode=importlib --strict-markers"]  # without the options of pytest-xdist
    if find_spec("xdist"):
        command += ["-n", str(min(16, usable_cores())), "--dist", "load", "-p", "no:benchmark"]
    summary = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout or []:
            print(line, end="", flush=True)
            summary = [line.strip()]
    return {"returncode": run.returncode, "summary": summary}


def print_progress(case: str, step: str, *_: int) -> None:
    print(f"{case}: {step}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tokens", type=positive, help="change the length of all cases")
    parser.add_argument("--preset", choices=PRESETS, help="change the model's shape in all cases")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="overwrite an existing results file")
    args = parser.parse_args()
    size = {"tokens": args.tokens, "preset": args.preset}
    settings = {"suite": "cuda", "device": args.device, "rounds": args.rounds} | size
    try:
        results = resume_results(args.out, settings, facts(), shlex.join(sys.argv), args.fresh)
        if not args.skip_tests and results.extra.get("tests", {}).get("returncode") != 0:
            results.extra["tests"] = run_tests()
            write_results(args.out, results)
        cases = resize(SUITES["cuda"], **size)
        for _ in run_cases(cases, results, args.out, args.device, args.rounds, print_progress):
            pass  # each is in the file now
    except PegasusXError as error:
        parser.error(str(error))
    print("\n".join(report(results)))
    if results.extra.get("tests", {}).get("returncode", 0) != 0:
        raise SystemExit("gpu_check.py: tests failed")


if __name__ == "__main__":
    main()
