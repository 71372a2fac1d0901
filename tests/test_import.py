"""Importing the package is cheap."""

import subprocess
import sys

import pytest

HEAVY = ("scipy", "sentencepiece", "torch", "cupy", "transformers", "jinja2", "matplotlib")
LIMIT = 3.7  # times `import numpy`, which it includes; measured: 3.0 to 3.4


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def seconds(module: str) -> float:
    """Measure CPU time, on which other programs have less influence than on wall time."""
    return float(run(f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"))


def test_import_leaves_heavy_packages_alone() -> None:
    loaded = run("import sys, pegasusx_ref.public; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert "pegasusx_ref" in loaded
    assert "numpy" in loaded
    assert not set(HEAVY) & set(loaded)


def test_names_are_imported_at_their_first_use() -> None:
    """The command line handles signals before NumPy is imported."""
    script = """
import sys
import pegasusx_ref, pegasusx_ref.__main__
assert not {"numpy", "click", "typing"} & {*sys.modules} - before, "imported"
assert {*pegasusx_ref.__all__, "__version__"} <= {*dir(pegasusx_ref)}
from pegasusx_ref import *
print(pipeline.__name__, pegasusx_ref.verify.__name__, pegasusx_ref.model.config.__name__, hasattr(pegasusx_ref, "no"))
"""
    assert run("import sys; before = {*sys.modules}" + script) == "pipeline verify pegasusx_ref.model.config False"


@pytest.mark.slow
def test_import_costs_little_more_than_numpy() -> None:
    times: dict[str, list[float]] = {"numpy": [], "pegasusx_ref.public": []}
    for _ in range(5):
        for module, list_of in times.items():
            list_of.append(seconds(module))
    assert min(times["pegasusx_ref.public"]) <= LIMIT * min(times["numpy"]), times
