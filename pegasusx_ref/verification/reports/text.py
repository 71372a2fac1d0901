"""A verification's report as lines of text."""

from pegasusx_ref.verification import Check, Diagnosis, Report
from pegasusx_ref.verification.checking import VERDICTS

MOST_UNKNOWN = 10  # names
COLUMNS = "{:52} {:13} {:>8} {:>9} {:>9} {:>9} {:>11}"


def as_text(report: Report, everything: bool = False) -> str:
    """Say what was found: the first failure, then a table, then a count.

    Args:
        report: what `verify` found.
        everything: list the tensors that pass too.
    """
    listed = [check for check in report.table if everything or check.verdict in ("warn", "fail")]
    found = []
    if report.first_failure is not None:
        first = report.first_failure
        found.append(f"First wrong: {first.name} ({first.operation}){why(first)}")
        found += [f"Looks like: {explained(diagnosis, first)}" for diagnosis in report.diagnoses]
    if listed:
        found.append(COLUMNS.format("tensor", "operation", "rho", "error", "sigma", "bound", "verdict"))
        found += [row(check) for check in listed]
    found.append(f"{len(report.table)} tensors in {report.arithmetic}: {counted(report)}")
    if report.unknown:
        more = f" and {len(report.unknown) - MOST_UNKNOWN} more" if len(report.unknown) > MOST_UNKNOWN else ""
        found.append(f"not known here: {', '.join(report.unknown[:MOST_UNKNOWN])}{more}")
    return "\n".join(found)


def row(check: Check) -> str:
    """Write a line of the table."""
    numbers = (f"{number:.2g}" for number in (check.rho, check.error, check.sigma, check.bound))
    verdict = check.verdict if check.is_direct else f"{check.verdict} (wide)"
    return COLUMNS.format(check.name, check.operation, *numbers, verdict)


def why(check: Check) -> str:
    """Say what is wrong with a tensor beside its numbers, and where."""
    return (f": {check.note}" if check.note else "") + (f" at {list(check.at)}" if check.at else "")


def explained(diagnosis: Diagnosis, failing: Check) -> str:
    """Say what explains a failure, and where it is made, if that is elsewhere."""
    where = "" if diagnosis.where == failing.name else f" (in {diagnosis.where}, which is not shown)"
    return diagnosis.mistake + where


def counted(report: Report) -> str:
    """Count the tensors by verdict."""
    counts = {verdict: sum(check.verdict == verdict for check in report.table) for verdict in VERDICTS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
