"""A verification's report as plain values, for JSON."""

from typing import Any

from pegasusx_ref.checkpoint.files import finite_or_word
from pegasusx_ref.verification import Report


def as_dict(report: Report) -> dict[str, Any]:
    """Make an object that JSON can hold: numbers that are not finite become words."""
    table = [{key: finite_or_word(value) for key, value in check._asdict().items()} for check in report.table]
    first = None if report.first_failure is None else report.first_failure.name
    return {
        "passed": report.passed,
        "arithmetic": report.arithmetic,
        "first_failure": first,
        "diagnoses": [{key: finite_or_word(value) for key, value in d._asdict().items()} for d in report.diagnoses],
        "unknown": report.unknown,
        "table": table,
    }
