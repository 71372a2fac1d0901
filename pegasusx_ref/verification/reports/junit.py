"""A verification's report as JUnit XML for CI systems: one test case per tensor."""

import re
from xml.etree import ElementTree as ET

from pegasusx_ref.errors import CONTROL
from pegasusx_ref.verification.reports.summary_lines import coverage_lines, known_lines
from pegasusx_ref.verification.reports.text import (
    details,
    finding_text,
    located,
    rows_text,
    verdict_counts,
)
from pegasusx_ref.verification.verdicts import Check, Finding, Report

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(report: Report, subject: str = "candidate") -> str:
    """Format a report as JUnit XML; known differences are skipped, other notes are in system-out.

    Args:
        report: the result of `verify`.
        subject: what was verified, in words.
    """
    failed, known = (sum(check.verdict == verdict for check in report.table) for verdict in ("fail", "known"))
    tests, failed = len(report.table) + report.is_strict, failed + bool(report.gap)
    counts = {"tests": str(tests), "failures": str(failed), "errors": "0", "skipped": str(known)}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": printable(f"verify {subject}"), **counts})
    properties = ET.SubElement(suite, "properties")
    for name, value in {"arithmetic": report.arithmetic, "verdicts": verdict_counts(report)}.items():
        ET.SubElement(properties, "property", {"name": name, "value": value})
    findings = {finding.first.name: finding for finding in report.findings}
    reasons = {check.name: difference.reason for difference, checks in report.known.items() for check in checks}
    for check in report.table:
        finding = findings.get(check.name)
        where = "" if finding is None else finding_text(finding) + rows_text(report, finding)
        _add_case(suite, check, finding, where, reasons.get(check.name, ""))
    if report.is_strict:
        strict = ET.SubElement(suite, "testcase", {"classname": "coverage", "name": "--strict"})
        if report.gap:
            ET.SubElement(strict, "failure", {"message": report.gap, "type": "coverage"})
    ET.SubElement(suite, "system-out").text = printable("\n".join(coverage_lines(report) + known_lines(report)))
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def model_part(name: str) -> str:
    """Return the part of the model that a tensor belongs to: encoder.layers.1, decoder, …."""
    match = re.match(r"(encoder|decoder)(\.layers\.\d+)?", name)
    return match.group() if match else "head"


def printable(text: str) -> str:
    """Replace control characters except line breaks, and the characters that XML cannot hold."""
    return NOT_XML.sub("\ufffd", "\n".join(CONTROL.sub("\ufffd", line) for line in text.split("\n")))


def _add_case(suite: ET.Element, check: Check, finding: Finding | None, where: str, reason: str) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": model_part(check.name), "name": printable(check.name)})
    numbers = f"rho {check.rho:.3g}, error {check.error:.3g}, sigma {check.sigma:.3g}, bound {check.bound:.3g}"
    if check.verdict == "fail":
        lines = [f"{check.operation}{details(check)}: {numbers}", f"end to end {check.end_to_end:.3g}"]
        if finding is not None:
            lines.append(f"the first wrong tensor of a finding: {where}")
            lines += [f"likely bug: {located(diagnosis, check)}" for diagnosis in finding.diagnoses]
        message = {"message": printable(lines[0]), "type": check.operation}
        ET.SubElement(case, "failure", message).text = printable("\n".join(lines))
    if check.verdict == "known":
        ET.SubElement(case, "skipped", {"message": printable(f"known difference: {reason}")})
    notes = [check.verdict] if check.verdict in ("warn", "blind") else []
    notes += [] if check.is_direct else ["wide: the candidate does not show all inputs of the operation"]
    if notes:
        ET.SubElement(case, "system-out").text = f"{', '.join(notes)}: {numbers}"
