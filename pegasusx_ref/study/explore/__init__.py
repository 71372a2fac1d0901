"""One HTML page of a text's run: what each token attends to, and how the summary is written."""

from pegasusx_ref.study.explore.exploration import Exploration, explore_text
from pegasusx_ref.study.explore.html_page import as_page

__all__ = ["Exploration", "as_page", "explore_text"]
