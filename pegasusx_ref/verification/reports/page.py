"""A verification's report as one HTML page that needs nothing else: no network, no script."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.rendering.templates import page_template
from pegasusx_ref.verification import Check, Report
from pegasusx_ref.verification.reports.cells import LEVELS
from pegasusx_ref.verification.reports.drawing import Drawing, drawn
from pegasusx_ref.verification.reports.heatmaps import Spot, heatmaps, place, worst_spots
from pegasusx_ref.verification.reports.overview import badness, overview
from pegasusx_ref.verification.reports.text import counted, explained

NUM_SPOTS = 8
SHOWN = ("warn", "fail")


class Detail(NamedTuple):
    """How much of a heatmap is shown: texts of the batch, cells and pieces with numbers along an axis."""

    most_texts: int
    most_cells: int
    most_tiles: int


FIRST, FOLDED, MOST_FOLDED = Detail(4, 512, 64), Detail(1, 128, 32), 20


class Figure(NamedTuple):
    """A heatmap on the page, with its worst rows in words."""

    drawing: Drawing
    spots: list[Spot]


def as_html(report: Report, subject: str = "candidate") -> str:
    """Write a page: the first failure and its diagnosis, where it is, the other failures, and all tensors. [spec 16.15]

    Args:
        report: what `verify` found.
        subject: what was verified, in words.

    Returns:
        HTML with its style and pictures in it.
    """
    first = report.first_failure or max(report.table, key=lambda check: check.rho)
    worst: dict[str, Check] = {}  # by place, in the order of execution
    for check in report.table:
        where = place(check.name)
        worst[where] = max(worst.get(where, check), check, key=badness)
    others = [check for where, check in worst.items() if check.verdict in SHOWN and where != place(first.name)]
    html: str = page_template("pegasusx_ref.verification.reports", "page.html", number=number).render(
        report=report,
        subject=subject,
        counted=counted(report),
        explained=explained,
        first=first,
        figures=figures(report, first, FIRST),
        others=[(check, figures(report, check, FOLDED)) for check in others[:MOST_FOLDED]],
        num_left_out=len(others[MOST_FOLDED:]),
        maps=overview(report),
        levels=LEVELS,
        config=report.config,
        blocks=report.valid.blocks,
        num_texts=len(report.valid.source_mask_BT),
        sources=lengths(report.valid.source_mask_BT),
        targets=lengths(report.valid.target_mask_BL),
    )
    return html


def figures(report: Report, check: Check, detail: Detail) -> list[Figure]:
    """Draw the place of a tensor, of a batch the worst texts, these first."""
    found = [(heatmap, worst_spots(heatmap, NUM_SPOTS)) for heatmap in heatmaps(report, place(check.name))]
    found = [(heatmap, spots) for heatmap, spots in found if spots]
    found.sort(key=lambda pair: (pair[1][0].is_wrong, pair[1][0].rho), reverse=True)
    return [
        Figure(drawn(heatmap, detail.most_cells, detail.most_tiles), spots)
        for heatmap, spots in found[: detail.most_texts]
    ]


def lengths(mask: np.ndarray) -> str:
    """Say how many tokens of each text are real."""
    counts = mask.sum(axis=1)
    return str(counts[0]) if (counts == counts[0]).all() else f"{counts.min()} to {counts.max()}"


def number(value: float) -> str:
    """Write a number with two digits."""
    return f"{value:.2g}"
