"""A verification's report for the command line: as lines of text, or as a dict for JSON."""

from typing import Any

import numpy as np

from pegasusx_ref.files.json_files import finite_or_word
from pegasusx_ref.rendering.tables import counted
from pegasusx_ref.verification.checking.checker import NOT_FINITE
from pegasusx_ref.verification.reports.summary_lines import coverage_lines, known_lines, known_state
from pegasusx_ref.verification.verdicts import VERDICTS, Check, Diagnosis, Finding, Report

MAX_ROWS = 8  # rows that are listed
LISTED = ("warn", "known", "fail")
BLIND = "blind: rounding would hide all but gross errors"
WIDE = "wide: the candidate does not show all inputs of the operation, so its tolerance is larger"
REMEDY = "pegasusx-ref verify --suggest-inputs FILE"
COLUMNS = "{:52} {:13} {:>8} {:>9} {:>9} {:>9} {:>11}"


def as_text(report: Report, everything: bool = False) -> str:
    """Format a report as text: the findings with their likely bugs, known differences, a table, counts, coverage.

    Args:
        report: the result of `verify`.
        everything: list the tensors that pass too.
    """
    listed = [check for check in report.table if everything or check.verdict in LISTED]
    lines = [f"Passes as: {', '.join(report.passes_as)}"] if report.passes_as else []
    for number, finding in enumerate(report.findings):
        lines.append(f"{'Also' if number else 'First'} wrong: {finding_text(finding)}{rows_text(report, finding)}")
        bugs = [diagnosis for diagnosis in finding.diagnoses if not is_repeated(diagnosis, finding.first)]
        lines += [f"Likely bug: {located(diagnosis, finding.first)}" for diagnosis in bugs]
    lines += [f"Hint: {hint}" for hint in report.hints]
    lines += known_lines(report)
    if listed:
        lines.append(COLUMNS.format("tensor", "operation", "rho", "error", "sigma", "bound", "verdict"))
        lines += [table_row(check) for check in listed]
    lines.append(
        f"{counted(len(report.table), 'tensor', separator='')} in {report.arithmetic}: {verdict_counts(report)}"
    )
    lines += coverage_lines(report)
    if report.gap:
        lines.append(f"Failed: --strict: {report.gap}")
    if report.notes:
        lines.append(f"These inputs cannot show: {'; '.join(report.notes)}. `{REMEDY}` writes inputs that can")
    words = {BLIND: any(check.verdict == "blind" for check in report.table), WIDE: not all(c.is_direct for c in listed)}
    if any(words.values()):
        lines.append("; ".join(word for word, is_used in words.items() if is_used))
    return "\n".join(lines)


def as_dict(report: Report) -> dict[str, Any]:
    """Convert a report to an object that JSON can hold: numbers that are not finite become words."""

    def numbers(item: Check | Diagnosis) -> dict[str, Any]:
        return {key: finite_or_word(value) for key, value in item._asdict().items()}

    return {
        "passed": report.passed,
        "arithmetic": report.arithmetic,
        "passes_as": report.passes_as,
        "first_failure": None if report.first_failure is None else report.first_failure.name,
        "diagnoses": [numbers(diagnosis) for diagnosis in report.diagnoses],
        "findings": [
            {
                "tensors": [check.name for check in finding.checks],
                "rows": rows_dict(report, finding),
                "diagnoses": [numbers(diagnosis) for diagnosis in finding.diagnoses],
            }
            for finding in report.findings
        ],
        "known": [
            {
                "pattern": difference.pattern,
                "reason": difference.reason,
                "limits": dict(difference.limits),
                "state": known_state(report, difference),
                "tensors": [check.name for check in checks],
                "assumed": report.assumed.get(difference, []),
            }
            for difference, checks in report.known.items()
        ],
        "coverage": report.coverage._asdict(),
        "unknown": report.unknown,
        "notes": report.notes,
        "hints": report.hints,
        "table": [numbers(check) for check in report.table],
    }


def finding_text(finding: Finding) -> str:
    """Format the place of a finding: its first tensor, and how many others it has."""
    first, others = finding.first, finding.checks[1:]
    more = ""
    if others:
        more = f", and {others[0].name}" if len(others) == 1 else f", and {len(others)} more, to {others[-1].name}"
    return f"{first.name} ({first.operation}){details(first)}{more}"


def rows_text(report: Report, finding: Finding) -> str:
    """Format which rows of a finding's first tensor are wrong, where some are right."""
    rows = rows_dict(report, finding)
    if not 0 < rows["wrong"] < rows["checked"]:
        return ""
    count = f"; {rows['wrong']} of {rows['checked']} rows"
    if 2 * rows["wrong"] > rows["checked"]:
        return count
    more = ", …" if rows["wrong"] > len(rows["first"]) else ""
    return f"{count}: {', '.join(str(row) for row in rows['first'])}{more}"


def rows_dict(report: Report, finding: Finding) -> dict[str, Any]:
    """Count the rows of a finding's first tensor that are wrong, and list the first of them."""
    errors = report.rows.get(finding.first.name)
    if errors is None:
        return {"wrong": 0, "checked": 0, "first": []}
    wrong = np.argwhere(errors.is_wrong)
    return {
        "wrong": len(wrong),
        "checked": int((~np.isnan(errors.rho)).sum()),
        "first": [[int(i) for i in row] for row in wrong[:MAX_ROWS]],
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


def is_repeated(diagnosis: Diagnosis, check: Check) -> bool:
    """Return whether a likely bug only says that numbers are not finite, as the tensor's note does."""
    return check.note == NOT_FINITE and diagnosis.mistake.startswith(("a number is ", "numbers are "))


def verdict_counts(report: Report) -> str:
    """Format the number of tensors by verdict."""
    counts = {verdict: sum(check.verdict == verdict for check in report.table) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
