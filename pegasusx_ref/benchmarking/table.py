"""The tables: time beside the reference's, peak memory, growth with the length, and rates beside the machine's."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pegasusx_ref.benchmarking.cases import MACHINE, OURS, THEIRS
from pegasusx_ref.benchmarking.comparing import growth, is_met, median, rate, ratio, reached, share
from pegasusx_ref.benchmarking.results import CaseResult, Results
from pegasusx_ref.benchmarking.work import work_of
from pegasusx_ref.study.figures import Table, scaled, size

Column = tuple[str, Callable[[CaseResult], str]]  # a heading and what stands in the row of a case
NOTHING = ""
UNKNOWN = "-"


class Section(NamedTuple):
    """A table and what it shows."""

    title: str
    table: Table


def tables(results: Results) -> list[Section]:
    """Make the tables of a run, those that have rows.

    Args:
        results: of the run.
    """
    who = [name for name in (THEIRS, "torch", "numpy", "cupy") if any(name in r.runs for r in results.cases.values())]
    lengthened = [result for result in results.cases.values() if result.case.grows_from]
    measured = [r for r in results.cases.values() if any(median(run, "memory") for run in r.runs.values())]
    found = [
        section(
            "Time, of a decoded token or of the whole; its ratio to the first column, round by round",
            [*results.cases.values()],
            [column for name in who for column in time_columns(results, name)],
        ),
        section(
            "Peak memory above what was there before",
            measured,
            [column for name in who for column in memory_columns(results, name)],
        ),
        section(
            "Growth of time with the length",
            lengthened,
            [
                ("from tokens", lambda result: str(result.case.grows_from)),
                *(column for name in who for column in growth_columns(results, name)),
            ],
        ),
        section(
            "Rates, of matrix products or of what has to be read; the machine's is its limit at that time",
            [*results.cases.values()],
            [(name, rate_of(name)) for name in (MACHINE, *who)],
        ),
    ]
    return [one for one in found if one.table.rows]


def section(title: str, rows: Sequence[CaseResult], columns: Sequence[Column]) -> Section:
    """Make a table with a row a case; columns in which nothing stands are left out."""
    columns = [(name, cell) for name, cell in columns if any(cell(result) != NOTHING for result in rows)]
    header = ["case", *(name for name, _ in columns)]
    return Section(title, Table(header, [[r.case.name, *(cell(r) for _, cell in columns)] for r in rows]))


def time_columns(results: Results, who: str) -> list[Column]:
    """Make the columns of one implementation: time, share of the machine's limit, ratio, range, aim."""
    columns: list[Column] = [(who, lambda result: value_of(result, who, "time", duration))]
    if who in OURS:
        columns.append(("limit", lambda result: share_of(results, result, who)))
    return columns + compared_columns(results, who, "time")


def memory_columns(results: Results, who: str) -> list[Column]:
    """Make the columns of one implementation: peak memory, ratio, range, aim."""
    columns: list[Column] = [(who, lambda result: value_of(result, who, "memory", lambda peak: size(round(peak))))]
    return columns + compared_columns(results, who, "memory")


def growth_columns(results: Results, who: str) -> list[Column]:
    """Make the columns of one implementation: by how many times its time has grown, and the aim."""

    def grown(result: CaseResult) -> str:
        value = growth(results, result, who)
        return NOTHING if value is None else f"{value:.2f}"

    return [(who, grown), ("aim", lambda result: aim_of(results, result, who, "growth"))]


def compared_columns(results: Results, who: str, figure: str) -> list[Column]:
    """Make the columns that compare an implementation with the reference of each case."""

    def middle(result: CaseResult) -> str:
        found = ratio(result, who, figure)
        return NOTHING if found is None else f"{found.median:.3f}"

    def spread(result: CaseResult) -> str:
        found = ratio(result, who, figure)
        return NOTHING if found is None else f"{found.lowest:.2f}–{found.highest:.2f}"

    return [("ratio", middle), ("range", spread), ("aim", lambda result: aim_of(results, result, who, figure))]


def value_of(result: CaseResult, who: str, figure: str, written: Callable[[float], str]) -> str:
    """Write a median; a dash where it is not known, nothing where the case is not for this implementation."""
    if who not in result.runs:
        return NOTHING
    value = median(result.runs[who], figure)
    if value is None:
        return "failed" if result.runs[who].problem else UNKNOWN
    return written(value)


def share_of(results: Results, result: CaseResult, who: str) -> str:
    """Write which share of the machine's limit is reached, with its aim where there is one."""
    value = share(result, who)
    aim = aim_of(results, result, who, "share")
    return NOTHING if value is None else f"{100 * value:.0f} %{aim and ' ≥ '}{aim}"


def aim_of(results: Results, result: CaseResult, who: str, figure: str) -> str:
    """Write an aim and whether it is met; nothing where there is none."""
    for aim in result.case.aims:
        if (aim.implementation, aim.figure) == (who, figure):
            value = reached(results, result, aim)
            return f"{aim.value:.2f} {UNKNOWN if value is None else '✓' if is_met(aim, value) else '✗'}"
    return NOTHING


def rate_of(who: str) -> Callable[[CaseResult], str]:
    """Make a column of rates."""

    def cell(result: CaseResult) -> str:
        value, unit = rate(result, who), work_of(result.case).unit
        return NOTHING if value is None else scaled(round(value), 1000, [f" {p}{unit}/s" for p in ("", *"kMGTPE")])

    return cell


def duration(seconds: float) -> str:
    """Write a time in seconds or milliseconds with three digits."""
    value, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"
