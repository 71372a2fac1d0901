"""Formats of a verification's report: text, a dict for JSON, an HTML page, JUnit XML."""

from pegasusx_ref.verification.reports.html_report import as_html
from pegasusx_ref.verification.reports.junit import as_junit
from pegasusx_ref.verification.reports.text import as_dict, as_text

__all__ = ["as_dict", "as_html", "as_junit", "as_text"]
