"""Importing the package is cheap."""

import subprocess
import sys

HEAVY = ("scipy", "sentencepiece", "torch", "cupy", "transformers", "jinja2", "matplotlib")
LIMIT = 0.15  # seconds beyond `import numpy`


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def seconds(module: str) -> float:
    return float(run(f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"))


def test_import_leaves_heavy_packages_alone() -> None:
    loaded = run("import sys, pegasusx_ref; print(*sorted({name.partition('.')[0] for name in sys.modules}))").split()
    assert "pegasusx_ref" in loaded
    assert "numpy" in loaded
    assert not set(HEAVY) & set(loaded)


def test_import_costs_little_more_than_numpy() -> None:
    times: dict[str, list[float]] = {"numpy": [], "pegasusx_ref": []}
    for _ in range(5):
        for module, list_of in times.items():
            list_of.append(seconds(module))
    assert min(times["pegasusx_ref"]) - min(times["numpy"]) <= LIMIT, times
