"""Collects the examples of README.md and of the specification, and checks dimension suffixes in the whole suite.

An example is a ``>>>`` in a fenced ``python`` block. A page's blocks share one namespace. ``<!-- skip: next -->`` in
front of a block leaves it out.
"""

import os

# Before NumPy is imported. Threads of OpenBLAS and OpenMP (torch) spin while they wait: where several processes share
# the cores, small matrices take up to ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from suffixes import pytest_runtest_setup, pytest_runtest_teardown, pytest_runtestloop
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

__all__ = [
    "pytest_addoption",
    "pytest_collect_file",
    "pytest_runtest_setup",
    "pytest_runtest_teardown",
    "pytest_runtestloop",
]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "spec/*.md", "spec/guides/corpora.md"],
    excludes=["backends/*"],
).pytest()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="Run the long forms of the reliability tests: hours.")
