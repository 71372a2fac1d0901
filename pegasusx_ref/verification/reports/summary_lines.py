"""Lines of a report on known differences and on coverage, for all its formats."""

from collections.abc import Sequence

from pegasusx_ref.errors import printable, shortened
from pegasusx_ref.tracing.trace_points import general
from pegasusx_ref.verification.coverage import MAX_LISTED, is_elsewhere
from pegasusx_ref.verification.known_differences import KnownDifference, is_numerical
from pegasusx_ref.verification.verdicts import Report

MAX_NAME = 100  # characters of an unknown name
KNOWN, EXCEEDS = "Known", "Exceeds its limit"


def known_lines(report: Report) -> list[str]:
    """Format the known differences: where each is, or why it is nowhere."""
    lines = []
    for difference, checks in report.known.items():
        if checks:
            names = listing([check.name for check in checks])
            lines.append(
                f"Known: {difference.reason}, error {max(check.largest_error for check in checks):.2g}: {names}"
            )
        if (state := known_state(report, difference)) != KNOWN:
            lines.append(f"{state}: {difference}")
    return lines


def known_state(report: Report, difference: KnownDifference) -> str:
    """Return what became of a known difference, in words."""
    found = [check for check in report.table if difference.matches(check.name)]
    failing = [check for check in found if check.verdict == "fail"]
    if any(is_numerical(check) for check in failing):
        return EXCEEDS
    if failing:
        return f"Does not cover this ({failing[0].note})"
    if report.known[difference]:
        return KNOWN
    if report.assumed.get(difference):
        return "Assumed (not shown)"
    if all(check.verdict == "blind" and check.note for check in found):
        reason = found[0].note.removeprefix("not checked: ") if found else "no such tensor is shown"
        return f"Not checked ({reason})"
    return "Covered by an earlier line" if any(check.verdict == "known" for check in found) else "No longer occurs"


def coverage_lines(report: Report) -> list[str]:
    """Format which tensors are shown, which are missing, and which names are unknown."""
    shown, missing, unknown = report.coverage
    lines = [f"Shown: {shown} of {shown + len(missing)} tensors of the run"]
    if missing:
        by_point: dict[str, list[str]] = {}
        for name in missing:
            by_point.setdefault(general(name), []).append(name)
        points = [f"{point} ({len(names)})" if names[1:] else names[0] for point, names in by_point.items()]
        lines.append(f"Missing: {listing(points)}")
    if unknown:
        lines.append(f"Unknown names: {listing([unknown_text(*pair) for pair in unknown.items()])}")
    return lines


def unknown_text(name: str, nearest: str) -> str:
    """Format an unknown name, with the one that may be meant."""
    remark = "the run has no such layer or block" if is_elsewhere(name) else f"{nearest}?" if nearest else ""
    return shortened(printable(name), MAX_NAME) + (f" ({remark})" if remark else "")


def listing(names: Sequence[str]) -> str:
    """Join names; of many, the first ones and the number of the others."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
