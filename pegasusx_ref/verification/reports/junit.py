"""A verification's report as the XML that CI systems read: one test case a tensor."""

import re
from xml.etree import ElementTree as ET

from pegasusx_ref.verification import Check, Report
from pegasusx_ref.verification.reports.text import counted, explained, why

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(report: Report, subject: str = "candidate") -> str:
    """Write JUnit's XML: what fails is a failure, what warns, is blind or was judged widely says so in its output.

    Args:
        report: what `verify` found.
        subject: what was verified, in words.
    """
    failed = sum(check.verdict == "fail" for check in report.table)
    counts = {"tests": str(len(report.table)), "failures": str(failed), "errors": "0", "skipped": "0"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": printable(f"verify {subject}"), **counts})
    properties = ET.SubElement(suite, "properties")
    for name, value in {"arithmetic": report.arithmetic, "verdicts": counted(report)}.items():
        ET.SubElement(properties, "property", {"name": name, "value": value})
    for check in report.table:
        _add_case(suite, check, report)
    if report.unknown:
        ET.SubElement(suite, "system-out").text = printable(f"not known here: {', '.join(report.unknown)}")
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def part(name: str) -> str:
    """Name the part of the model that a tensor belongs to: encoder.layers.1, decoder, …."""
    match = re.match(r"(encoder|decoder)(\.layers\.\d+)?", name)
    return match.group() if match else "head"


def printable(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return NOT_XML.sub("\ufffd", text)


def _add_case(suite: ET.Element, check: Check, report: Report) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": part(check.name), "name": printable(check.name)})
    numbers = f"rho {check.rho:.3g}, error {check.error:.3g}, sigma {check.sigma:.3g}, bound {check.bound:.3g}"
    if check.verdict == "fail":
        told = [f"{check.operation}{why(check)}: {numbers}", f"from end to end {check.end_to_end:.3g}"]
        if check is report.first_failure:
            told += [
                "the first tensor that is wrong",
                *(f"looks like: {explained(d, check)}" for d in report.diagnoses),
            ]
        message = {"message": printable(told[0]), "type": check.operation}
        ET.SubElement(case, "failure", message).text = printable("\n".join(told))
    noted = [check.verdict] if check.verdict in ("warn", "blind") else []
    noted += [] if check.is_direct else ["wide: what goes into it was not shown"]
    if noted:
        ET.SubElement(case, "system-out").text = f"{', '.join(noted)}: {numbers}"
