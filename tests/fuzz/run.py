"""The long form: random inputs over all readers and arguments, by seed, in worker processes.

    python tests/fuzz/run.py --count 100000 --log fuzz.log

Each input is named by its reader, the damaged file, the kind of damage and a seed, which repeat it:

    python tests/fuzz/run.py --only "bin/pytorch_model.bin/expanded/7"
"""

import argparse
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

MAX_ADDRESS_SPACE = 12 * 2**30  # bytes above that of the libraries: a safety net for the machine
SILENCE = 60  # seconds without any input judged; the worker is ended
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
SHARED_MEMORY = Path("/dev/shm")


def names(count: int, seed: int, readers: list[str]) -> list[str]:
    """Name every kind of damage once, then random ones; of all readers and calls, or of the given readers."""
    from fuzz.cases import all_kinds, draw_kind

    rng = Random(seed)
    found = [f"{kind}/{seed}" for kind in all_kinds() if not readers or kind.split("/")[0] in readers]
    found += [f"{draw_kind(rng, readers)}/{rng.randrange(2**32)}" for _ in range(count - len(found))]
    return found[:count]


def work(cases: list[str], folder: Path) -> None:
    """Judge cases in this process and print a line before and after each."""
    from fuzz.cases import judge_case, prepare

    if not (folder / "valid").exists():
        prepare(folder / "valid")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MAX_ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in cases:
        print(f"> {name}", flush=True)
        start = time.monotonic()
        outcome = judge_case(name, folder)
        print(f"{1e3 * (time.monotonic() - start):.0f} ms\t{outcome}", flush=True)


def outcomes(cases: list[str], folder: Path, errors: Path) -> Iterator[tuple[str, str]]:
    """Judge cases in worker processes; after a crash or a hang, a new one continues with the next case."""
    position = 0
    while position < len(cases):
        batch = cases[position : position + 2000]
        (folder / "cases").write_text("\n".join(batch), "utf-8")
        with errors.open("ab") as log:
            command = [sys.executable, __file__, "--worker", str(folder)]
            worker = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | ONE_THREAD
            )
        current, buffer, silent = None, b"", False
        assert worker.stdout is not None
        while True:
            if not select.select([worker.stdout], [], [], SILENCE)[0]:
                silent = True
                worker.kill()
                break
            chunk = os.read(worker.stdout.fileno(), 2**16)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in map(bytes.decode, lines):
                if line.startswith("> "):
                    current = line[2:]
                elif current is not None and "\t" in line:
                    yield current, line.split("\t", 1)[1]
                    position, current = position + 1, None
        worker.wait()
        if current is not None:
            yield current, f"FINDING {'silence' if silent else f'crash: exit code {worker.returncode}'}"
            position += 1
        elif worker.returncode:
            raise SystemExit(f"the worker ended with {worker.returncode} before any case: see {errors}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", default=[], help="names of readers; all, and the arguments, if none")
    parser.add_argument("--only", nargs="*", help="names of cases, or the beginnings of kinds")
    parser.add_argument("--cases", type=Path, help="a file of names, one a line")
    parser.add_argument("--log", type=Path, default=Path("fuzz.log"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work((arguments.worker / "cases").read_text("utf-8").splitlines(), arguments.worker)
        return
    if arguments.cases:
        cases = arguments.cases.read_text("utf-8").splitlines()
    elif arguments.only:
        cases = chosen(arguments.only, arguments.count, arguments.seed)
    else:
        cases = names(arguments.count, arguments.seed, arguments.readers)
    start, counts, findings = time.monotonic(), Counter[tuple[str, str]](), 0
    root = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=root) as folder, arguments.log.open("w", encoding="utf-8") as log:
        for i, (name, outcome) in enumerate(outcomes(cases, Path(folder), arguments.log.with_suffix(".stderr"))):
            kind = outcome.split()[0]
            counts[name.split("/")[0], kind] += 1
            if kind == "FINDING":
                findings += 1
                print(f"{name}: {outcome}", file=log, flush=True)
                print(f"{name}: {outcome}"[:300], flush=True)
            if (i + 1) % 5000 == 0:
                print(f"{i + 1:,} of {len(cases):,}, {findings} findings, {time.monotonic() - start:.0f} s", flush=True)
        lines = [f"{reader:20} {kind:8} {n:7,}" for (reader, kind), n in sorted(counts.items())]
        lines.append(f"{sum(counts.values()):,} inputs, {findings} findings, {time.monotonic() - start:.0f} s")
        print("\n".join(lines), file=log)
        print("\n".join(lines))
    raise SystemExit(findings > 0)


def chosen(prefixes: list[str], count: int, seed: int) -> list[str]:
    """Return named cases, or every kind with a prefix, drawn `count` times in all."""
    from fuzz.cases import all_kinds

    found = []
    for prefix in prefixes:
        kinds = [kind for kind in all_kinds() if kind.startswith(prefix)]
        rng = Random(seed + zlib.crc32(prefix.encode()))
        found += [f"{rng.choice(kinds)}/{rng.randrange(2**32)}" for _ in range(count)] if kinds else [prefix]
    return found


if __name__ == "__main__":
    main()
