"""A verification's report for the command line: as lines of text, or as a dict for JSON."""

from typing import Any

from pegasusx_ref.files.json_files import finite_or_word
from pegasusx_ref.verification.verdicts import VERDICTS, Check, Diagnosis, Report

MAX_UNKNOWN = 10  # names that are listed
COLUMNS = "{:52} {:13} {:>8} {:>9} {:>9} {:>9} {:>11}"


def as_text(report: Report, everything: bool = False) -> str:
    """Format a report as text: the first failure, its likely bugs, a table, and a count.

    Args:
        report: the result of `verify`.
        everything: list the tensors that pass too.
    """
    listed = [check for check in report.table if everything or check.verdict in ("warn", "fail")]
    lines = []
    if (first := report.first_failure) is not None:
        lines.append(f"First wrong: {first.name} ({first.operation}){details(first)}")
        lines += [f"Likely bug: {located(diagnosis, first)}" for diagnosis in report.diagnoses]
    if listed:
        lines.append(COLUMNS.format("tensor", "operation", "rho", "error", "sigma", "bound", "verdict"))
        lines += [table_row(check) for check in listed]
    lines.append(f"{len(report.table)} tensors in {report.arithmetic}: {verdict_counts(report)}")
    if report.unknown:
        more = f" and {len(report.unknown) - MAX_UNKNOWN} more" if len(report.unknown) > MAX_UNKNOWN else ""
        lines.append(f"Unknown names: {', '.join(report.unknown[:MAX_UNKNOWN])}{more}")
    return "\n".join(lines)


def as_dict(report: Report) -> dict[str, Any]:
    """Convert a report to an object that JSON can hold: numbers that are not finite become words."""
    table, diagnoses = (
        [{key: finite_or_word(value) for key, value in item._asdict().items()} for item in items]
        for items in (report.table, report.diagnoses)
    )
    return {
        "passed": report.passed,
        "arithmetic": report.arithmetic,
        "first_failure": None if report.first_failure is None else report.first_failure.name,
        "diagnoses": diagnoses,
        "unknown": report.unknown,
        "table": table,
    }


def table_row(check: Check) -> str:
    """Format a row of the table."""
    numbers = (f"{number:.2g}" for number in (check.rho, check.error, check.sigma, check.bound))
    verdict = check.verdict if check.is_direct else f"{check.verdict} (wide)"
    return COLUMNS.format(check.name, check.operation, *numbers, verdict)


def details(check: Check) -> str:
    """Format a tensor's note and the index of its worst element."""
    return (f": {check.note}" if check.note else "") + (f" at {list(check.at)}" if check.at else "")


def located(diagnosis: Diagnosis, failing: Check) -> str:
    """Format a likely bug, with the tensor that it is in where that is not the failing one."""
    where = "" if diagnosis.where == failing.name else f" (in {diagnosis.where}, which is not shown)"
    return diagnosis.mistake + where


def verdict_counts(report: Report) -> str:
    """Format the number of tensors by verdict."""
    counts = {verdict: sum(check.verdict == verdict for check in report.table) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
