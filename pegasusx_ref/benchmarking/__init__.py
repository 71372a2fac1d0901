"""Time and memory of this package beside transformers' and the machine's own limit, measured in alternation."""

from pegasusx_ref.benchmarking.cases import Aim, Case
from pegasusx_ref.benchmarking.facts import facts
from pegasusx_ref.benchmarking.results import Results
from pegasusx_ref.benchmarking.running import measured
from pegasusx_ref.benchmarking.storing import read_results, resumed
from pegasusx_ref.benchmarking.suites import SUITES, resized
from pegasusx_ref.benchmarking.table import tables

__all__ = [
    "SUITES",
    "Aim",
    "Case",
    "Results",
    "facts",
    "measured",
    "read_results",
    "resized",
    "resumed",
    "tables",
]
