"""Time and memory of this package beside transformers' and the machine's own limit, measured in alternation."""

from pegasusx_ref.benchmarking.cases import Aim, Case
from pegasusx_ref.benchmarking.facts import facts
from pegasusx_ref.benchmarking.report import report
from pegasusx_ref.benchmarking.results import CaseResult, Results, Run
from pegasusx_ref.benchmarking.running import measured, run_case
from pegasusx_ref.benchmarking.storing import read_results, resumed, write_results
from pegasusx_ref.benchmarking.suites import SUITES, resized
from pegasusx_ref.benchmarking.work import Work, work_of

__all__ = [
    "SUITES",
    "Aim",
    "Case",
    "CaseResult",
    "Results",
    "Run",
    "Work",
    "facts",
    "measured",
    "read_results",
    "report",
    "resized",
    "resumed",
    "run_case",
    "work_of",
    "write_results",
]
