"""A verification's report as one self-contained HTML page without scripts."""

import re
from functools import partial
from typing import NamedTuple

import numpy as np

from pegasusx_ref.rendering.tables import counted
from pegasusx_ref.rendering.templates import page_template
from pegasusx_ref.tracing.trace_points import general
from pegasusx_ref.verification.checking.arithmetics import get_arithmetic
from pegasusx_ref.verification.reports.heatmaps import Spot, heatmaps, place_of, worst_spots
from pegasusx_ref.verification.reports.summary_lines import coverage_lines, known_lines
from pegasusx_ref.verification.reports.svg import LEVELS, Drawing, draw
from pegasusx_ref.verification.reports.text import (
    LISTED,
    REMEDY,
    located,
    rows_text,
    verdict_counts,
)
from pegasusx_ref.verification.verdicts import VERDICTS, Check, Report

NUM_SPOTS = 8
OUTSIDE = "outside the layers"


class Detail(NamedTuple):
    """Limits of a heatmap: batch rows, and cells and tooltips along an axis."""

    max_batch_rows: int
    max_cells: int
    max_tooltips: int


FIRST, FOLDED, MAX_FOLDED = Detail(4, 512, 64), Detail(1, 128, 32), 20


class Figure(NamedTuple):
    """A heatmap on the page, and its worst rows for a table."""

    drawing: Drawing
    spots: list[Spot]


class Map(NamedTuple):
    """The worst verdict of every kind of tensor in every layer of one part of the model.

    Attributes:
        part: "encoder", "decoder", or `OUTSIDE`.
        layers: their numbers; -1 outside the layers.
        kinds: for each kind of tensor the worst one by layer, in the order of execution.
    """

    part: str
    layers: list[int]
    kinds: dict[str, dict[int, Check]]


def as_html(report: Report, subject: str = "candidate") -> str:
    """Format a report as HTML: the first failure, its diagnosis and heatmap, other failures, all tensors. [spec 16.15]

    Args:
        report: the result of `verify`.
        subject: what was verified, in words.

    Returns:
        HTML that includes its style and pictures.
    """
    first = report.first_failure or max(report.table, key=lambda check: check.rho)
    worst: dict[str, Check] = {}  # by place, in the order of execution
    for check in report.table:
        place = place_of(check.name)
        worst[place] = max(worst.get(place, check), check, key=badness)
    worst.pop(place_of(first.name), None)
    others = [check for check in worst.values() if check.verdict in LISTED]
    html: str = page_template("pegasusx_ref.verification.reports", "page.html", number=number).render(
        report=report,
        subject=subject,
        verdict_counts=verdict_counts(report),
        located=located,
        remedy=REMEDY,
        is_exact=first.sigma <= get_arithmetic(report.arithmetic).tiny,
        counted=partial(counted, separator=""),
        rows_text=rows_text(report, report.findings[0]) if report.findings else "",
        num_known=sum(map(len, report.known.values())),
        known_lines=known_lines(report),
        coverage_lines=coverage_lines(report),
        first=first,
        figures=figures(report, first, FIRST),
        others=[(check, figures(report, check, FOLDED)) for check in others[:MAX_FOLDED]],
        num_left_out=len(others[MAX_FOLDED:]),
        maps=overview(report),
        levels=LEVELS,
        config=report.config,
        blocks=report.valid.blocks,
        batch=len(report.valid.source_mask_BT),
        source_lengths=lengths(report.valid.source_mask_BT),
        target_lengths=lengths(report.valid.target_mask_BL),
    )
    return html


def figures(report: Report, check: Check, detail: Detail) -> list[Figure]:
    """Draw the heatmaps of a tensor's place, for the worst batch rows, the worst first."""
    found = [(heatmap, worst_spots(heatmap, NUM_SPOTS)) for heatmap in heatmaps(report, place_of(check.name))]
    found = [(heatmap, spots) for heatmap, spots in found if spots]
    found.sort(key=lambda pair: (pair[1][0].is_wrong, pair[1][0].rho), reverse=True)
    return [
        Figure(draw(heatmap, detail.max_cells, detail.max_tooltips), spots)
        for heatmap, spots in found[: detail.max_batch_rows]
    ]


def overview(report: Report) -> list[Map]:
    """Group results by part, kind and layer; a layer's blocks are represented by the worst one."""
    kinds: dict[str, dict[str, dict[int, Check]]] = {OUTSIDE: {}, "encoder": {}, "decoder": {}}
    for check in report.table:
        match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.*)", check.name)
        part, layer, kind = (match[1], int(match[2]), general(match[3])) if match else (OUTSIDE, -1, check.name)
        by_layer = kinds[part].setdefault(kind, {})
        by_layer[layer] = max(by_layer.get(layer, check), check, key=badness)
    return [
        Map(part, sorted({layer for by_layer in rows.values() for layer in by_layer}), rows)
        for part, rows in kinds.items()
        if rows
    ]


def badness(check: Check) -> tuple[int, float]:
    """Return a sort key, from good to bad."""
    return VERDICTS.index(check.verdict), check.rho


def lengths(mask: np.ndarray) -> str:
    """Format the number of real tokens of the batch rows."""
    counts = mask.sum(axis=1)
    return str(counts[0]) if (counts == counts[0]).all() else f"{counts.min()} to {counts.max()}"


def number(value: float) -> str:
    """Format a number with two digits."""
    return f"{value:.2g}"
