"""A text on its way through the model, on one page: what each token attends to, and how the summary is written."""

from pegasusx_ref.study.explore.exploring import Exploration, explored
from pegasusx_ref.study.explore.page import as_page

__all__ = ["Exploration", "as_page", "explored"]
