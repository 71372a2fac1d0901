"""A verification's report as plain values, for JSON."""

from typing import Any

import numpy as np

from pegasusx_ref.verification import Report


def as_dict(report: Report) -> dict[str, Any]:
    """Make an object that JSON can hold: numbers that are not finite become words."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, float) and not np.isfinite(value) else value

    table = [{key: plain(value) for key, value in check._asdict().items()} for check in report.table]
    first = None if report.first_failure is None else report.first_failure.name
    return {
        "passed": report.passed,
        "arithmetic": report.arithmetic,
        "first_failure": first,
        "diagnoses": [{key: plain(value) for key, value in d._asdict().items()} for d in report.diagnoses],
        "unknown": report.unknown,
        "table": table,
    }
