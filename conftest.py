"""Runs the examples of README.md and of the specification: every ``>>>`` in a fenced ``python`` block.

A page's blocks share one namespace. ``<!-- skip: next -->`` in front of a block leaves it out.
"""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md", "spec/*.md"], excludes=["backends/*"]
).pytest()
