"""A verification's report as JUnit XML for CI systems: one test case per tensor."""

import re
from xml.etree import ElementTree as ET

from pegasusx_ref.errors import CONTROL
from pegasusx_ref.verification.reports.text import details, located, verdict_counts
from pegasusx_ref.verification.verdicts import Check, Report

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(report: Report, subject: str = "candidate") -> str:
    """Format a report as JUnit XML; the verdicts warn and blind, and wide tolerances, are in a case's system-out.

    Args:
        report: the result of `verify`.
        subject: what was verified, in words.
    """
    failed = sum(check.verdict == "fail" for check in report.table)
    counts = {"tests": str(len(report.table)), "failures": str(failed), "errors": "0", "skipped": "0"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": printable(f"verify {subject}"), **counts})
    properties = ET.SubElement(suite, "properties")
    for name, value in {"arithmetic": report.arithmetic, "verdicts": verdict_counts(report)}.items():
        ET.SubElement(properties, "property", {"name": name, "value": value})
    for check in report.table:
        _add_case(suite, check, report)
    if report.unknown:
        ET.SubElement(suite, "system-out").text = printable(f"unknown names: {', '.join(report.unknown)}")
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def model_part(name: str) -> str:
    """Return the part of the model that a tensor belongs to: encoder.layers.1, decoder, …."""
    match = re.match(r"(encoder|decoder)(\.layers\.\d+)?", name)
    return match.group() if match else "head"


def printable(text: str) -> str:
    """Replace control characters except line breaks, and the characters that XML cannot hold."""
    return NOT_XML.sub("\ufffd", "\n".join(CONTROL.sub("\ufffd", line) for line in text.split("\n")))


def _add_case(suite: ET.Element, check: Check, report: Report) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": model_part(check.name), "name": printable(check.name)})
    numbers = f"rho {check.rho:.3g}, error {check.error:.3g}, sigma {check.sigma:.3g}, bound {check.bound:.3g}"
    if check.verdict == "fail":
        lines = [f"{check.operation}{details(check)}: {numbers}", f"end to end {check.end_to_end:.3g}"]
        if check is report.first_failure:
            lines.append("the first wrong tensor")
            lines += [f"likely bug: {located(diagnosis, check)}" for diagnosis in report.diagnoses]
        message = {"message": printable(lines[0]), "type": check.operation}
        ET.SubElement(case, "failure", message).text = printable("\n".join(lines))
    notes = [check.verdict] if check.verdict in ("warn", "blind") else []
    notes += [] if check.is_direct else ["wide: the candidate does not show all inputs of the operation"]
    if notes:
        ET.SubElement(case, "system-out").text = f"{', '.join(notes)}: {numbers}"
