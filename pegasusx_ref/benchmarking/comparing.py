"""What follows from the repetitions: ratios round by round, shares of the machine's limit, aims that are met."""

import statistics
from typing import Any, NamedTuple

from pegasusx_ref.benchmarking.cases import MACHINE, Aim
from pegasusx_ref.benchmarking.results import CaseResult, Results, Run
from pegasusx_ref.benchmarking.work import work_of


class Spread(NamedTuple):
    """The median of the rounds, and how far they lie apart."""

    median: float
    lowest: float
    highest: float


def figures(run: Run, figure: str) -> list[float]:
    """Give a run's "time" in seconds or "memory" in bytes of each round, as far as it is known."""
    return run.seconds if figure == "time" else [float(peak) for peak in run.memory if peak is not None]


def median(run: Run, figure: str = "time") -> float | None:
    """Give the median of a run's rounds; None where there are none."""
    found = figures(run, figure)
    return statistics.median(found) if found else None


def compared(run: Run, other: Run, figure: str = "time") -> Spread | None:
    """Divide a run's figures by another's, each by that of the same round; None where there are none.

    Two repetitions of one round lie close together in time, so that what slows the machine slows both.
    """
    pairs = zip(figures(run, figure), figures(other, figure), strict=False)  # who died has fewer rounds
    ratios = [mine / theirs for mine, theirs in pairs if theirs > 0]
    return Spread(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def ratio(result: CaseResult, implementation: str, figure: str = "time") -> Spread | None:
    """Compare an implementation with the reference of its case; None for the reference itself."""
    reference = result.case.reference
    if implementation in (reference, MACHINE) or implementation not in result.runs or reference not in result.runs:
        return None
    return compared(result.runs[implementation], result.runs[reference], figure)


def share(result: CaseResult, implementation: str) -> float | None:
    """Give the share of the machine's rate, in the same rounds, that an implementation reaches."""
    if MACHINE not in result.runs or implementation not in result.runs:
        return None
    found = compared(result.runs[MACHINE], result.runs[implementation])
    return found.median if found else None


def rate(result: CaseResult, implementation: str) -> float | None:
    """Give the work that an implementation does a second, in the unit of `work_of`."""
    seconds = median(result.runs[implementation]) if implementation in result.runs else None
    return work_of(result.case).amount / seconds if seconds else None


def growth(results: Results, result: CaseResult, implementation: str) -> float | None:
    """Divide an implementation's time by its own in the case with `grows_from` tokens; None without that case."""
    same = (result.case.kind, result.case.preset, result.case.dtype, result.case.grows_from)
    for shorter in results.cases.values():
        case = shorter.case
        if (case.kind, case.preset, case.dtype, case.tokens) == same and implementation in shorter.runs:
            before, after = median(shorter.runs[implementation]), median(result.runs[implementation])
            return after / before if before and after else None
    return None


def reached(results: Results, result: CaseResult, aim: Aim) -> float | None:
    """Give the figure that an aim is about; None where it was not measured."""
    if aim.figure == "growth":
        return growth(results, result, aim.implementation)
    if aim.figure == "share":
        return share(result, aim.implementation)
    found = ratio(result, aim.implementation, aim.figure)
    return found.median if found else None


def is_met(aim: Aim, value: float) -> bool:
    """Tell whether a figure is as good as its aim: a share at least, all others at most."""
    return value >= aim.value if aim.figure == "share" else value <= aim.value


def summary(results: Results) -> dict[str, Any]:
    """Gather what follows from the repetitions, by case and implementation, as JSON can hold it."""
    return {
        name: {who: summary_of(results, result, who) for who in result.case.implementations}
        for name, result in results.cases.items()
    }


def summary_of(results: Results, result: CaseResult, who: str) -> dict[str, Any]:
    """Gather what follows of one implementation in one case."""
    time_ratio, memory_ratio = (ratio(result, who, figure) for figure in ("time", "memory"))
    found = [(aim, reached(results, result, aim)) for aim in result.case.aims if aim.implementation == who]
    return {
        "seconds": median(result.runs[who]),
        "memory": median(result.runs[who], "memory"),
        "rate": rate(result, who),
        "unit": f"{work_of(result.case).unit}/s",
        "share": None if who == MACHINE else share(result, who),
        "reference": result.case.reference,
        "time_ratio": time_ratio and time_ratio._asdict(),
        "memory_ratio": memory_ratio and memory_ratio._asdict(),
        "growth": growth(results, result, who),
        "aims": [
            {"figure": aim.figure, "aim": aim.value, "reached": value, "met": value is not None and is_met(aim, value)}
            for aim, value in found
        ],
    }
