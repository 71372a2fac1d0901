"""What a verification found, written down: as text, as plain values for JSON, as an HTML page, as JUnit's XML."""

from pegasusx_ref.verification.reports.junit import as_junit
from pegasusx_ref.verification.reports.page import as_html
from pegasusx_ref.verification.reports.plain import as_dict
from pegasusx_ref.verification.reports.text import as_text

__all__ = ["as_dict", "as_html", "as_junit", "as_text"]
