"""The tables: time beside the reference's, peak memory, growth with the length, and rates beside the machine's."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pegasusx_ref.benchmarking.cases import MACHINE, THEIRS
from pegasusx_ref.benchmarking.comparing import growth, is_met, median, rate, ratio, reached, share
from pegasusx_ref.benchmarking.results import CaseResult, Results
from pegasusx_ref.benchmarking.work import work_of
from pegasusx_ref.rendering.tables import Table, scaled, size

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
    everything = list(results.cases.values())
    who = [name for name in (THEIRS, "torch", "numpy", "cupy") if any(name in result.runs for result in everything)]
    lengthened = [result for result in everything if result.case.grows_from]
    measured = [result for result in everything if any(median(run, "memory") for run in result.runs.values())]

    def each(columns: Callable[[Results, str], list[Column]]) -> list[Column]:
        return [column for name in who for column in columns(results, name)]

    start: Column = ("from tokens", lambda result: str(result.case.grows_from))
    found = [
        section("Time, of decoding for a token; ratio to the first, round by round", everything, each(time_columns)),
        section("Peak memory above what was there before", measured, each(memory_columns)),
        section("Growth of time with the length", lengthened, [start, *each(growth_columns)]),
        section(
            "Rates, of matrix products or of reading what has to be read, and their share of the machine's limit",
            everything,
            [(MACHINE, lambda result: rate_of(result, MACHINE)), *each(rate_columns)],
        ),
    ]
    return [one for one in found if one.table.rows]


def section(title: str, rows: Sequence[CaseResult], columns: Sequence[Column]) -> Section:
    """Make a table with a row a case; columns in which nothing stands are left out."""
    columns = [(name, cell) for name, cell in columns if any(cell(result) != NOTHING for result in rows)]
    header = ["case", *(name for name, _ in columns)]
    return Section(title, Table(header, [[r.case.name, *(cell(r) for _, cell in columns)] for r in rows]))


def time_columns(results: Results, who: str) -> list[Column]:
    """Make the columns of one implementation: time, ratio, range, aim."""
    time: Column = (who, lambda result: value_of(result, who, "time", duration))
    return [time, *compared_columns(results, who, "time")]


def memory_columns(results: Results, who: str) -> list[Column]:
    """Make the columns of one implementation: peak memory, ratio, range, aim."""
    peak: Column = (who, lambda result: value_of(result, who, "memory", lambda peak: size(round(peak))))
    return [peak, *compared_columns(results, who, "memory")]


def growth_columns(results: Results, who: str) -> list[Column]:
    """Make the columns of one implementation: by how many times its time has grown, and the aim."""

    def grown(result: CaseResult) -> str:
        value = growth(results, result, who)
        return NOTHING if value is None else f"{value:.2f}"

    return [(who, grown), ("aim", lambda result: aim_of(results, result, who, "growth"))]


def rate_columns(results: Results, who: str) -> list[Column]:
    """Make the columns of one implementation: its rate, the share of the machine's that this is, and the aim."""

    def part(result: CaseResult) -> str:
        value = share(result, who)
        return NOTHING if value is None else f"{100 * value:.0f} %"

    aim: Column = ("aim", lambda result: aim_of(results, result, who, "share"))
    return [(who, lambda result: rate_of(result, who)), ("share", part), aim]


def compared_columns(results: Results, who: str, figure: str) -> list[Column]:
    """Make the columns that compare an implementation with the reference of each case."""

    def middle(result: CaseResult) -> str:
        found = ratio(result, who, figure)
        return NOTHING if found is None else fraction(found.median)

    def spread(result: CaseResult) -> str:
        found = ratio(result, who, figure)
        return NOTHING if found is None else f"{fraction(found.lowest)}–{fraction(found.highest)}"

    return [("ratio", middle), ("range", spread), ("aim", lambda result: aim_of(results, result, who, figure))]


def value_of(result: CaseResult, who: str, figure: str, written: Callable[[float], str]) -> str:
    """Write a median; a dash where it is not known, nothing where the case is not for this implementation."""
    if who not in result.runs:
        return NOTHING
    value = median(result.runs[who], figure)
    if value is None:
        return "failed" if result.runs[who].problem else UNKNOWN
    return written(value)


def aim_of(results: Results, result: CaseResult, who: str, figure: str) -> str:
    """Write an aim and whether it is met; nothing where there is none."""
    for aim in result.case.aims:
        if (aim.implementation, aim.figure) == (who, figure):
            value = reached(results, result, aim)
            return f"{aim.value:g} {UNKNOWN if value is None else '✓' if is_met(aim, value) else '✗'}"
    return NOTHING


def rate_of(result: CaseResult, who: str) -> str:
    """Write the work that is done a second."""
    value, unit = rate(result, who), work_of(result.case).unit
    return (
        NOTHING if value is None else scaled(round(value), 1000, [f" {prefix}{unit}/s" for prefix in ("", *"kMGTPE")])
    )


def fraction(value: float) -> str:
    """Write a ratio with two or three digits."""
    return f"{value:.{3 if value < 0.0995 else 2}f}"


def duration(seconds: float) -> str:
    """Write a time in seconds or milliseconds with three digits."""
    value, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"
