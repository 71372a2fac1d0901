"""The plot of time and memory against the length of the text: one line per implementation, labelled at its end."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pegasusx_ref.benchmarking.cases import BACKENDS, MACHINE, TRANSFORMERS, Case
from pegasusx_ref.benchmarking.report import duration, fraction
from pegasusx_ref.benchmarking.results import CaseResult, Results
from pegasusx_ref.errors import InputError
from pegasusx_ref.rendering.canvas import BLUE, GREY, ORANGE, new_axes, new_figure, title
from pegasusx_ref.rendering.tables import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN = "#009E73"  # of Okabe and Ito's palette, like the others
COLOURS = {TRANSFORMERS: "black", "torch": BLUE, "numpy": ORANGE, "cupy": GREEN, MACHINE: GREY}
LABELS = {MACHINE: "the machine's limit"}
LABEL_DISTANCE = 0.06  # minimum, as a fraction of the axes' height


def scaling_figure(results: Results) -> Figure:
    """Draw time and peak memory of the encoder against the number of tokens, on logarithmic axes.

    Args:
        results: of which the model measured at most lengths is drawn.

    Raises:
        InputError: no model was measured at two lengths.
        ExtraError: matplotlib is not installed.
    """
    series = [results.cases[case.name] for case in longest_series(result.case for result in results.cases.values())]
    case = series[0].case
    figure = new_figure(11, 4.4)
    left, right = new_axes(figure, 121), new_axes(figure, 122)
    title(left, f"Time of the encoder, {case.preset}, {case.dtype} (ratio to {case.reference})")
    draw(left, series, "time", duration, base=10, multiples=(1, 2, 5))
    title(right, f"Its peak memory above the weights (ratio to {case.reference})")
    draw(right, series, "memory", lambda peak: size(round(peak)), base=2, multiples=(1,))
    return figure


def longest_series(cases: Iterable[Case]) -> list[Case]:
    """Return the encoder cases of the model with the most lengths, in order of length.

    Raises:
        InputError: no model has two lengths.
    """
    series: dict[tuple[str, str], dict[int, Case]] = {}
    for case in sorted(cases, key=lambda case: case.tokens):
        if case.kind == "encoder":
            series.setdefault((case.preset, case.dtype), {})[case.tokens] = case
    longest = max(series.values(), key=len, default={})
    if len(longest) < 2:
        raise InputError("nothing to plot: the plot needs encoder cases of one model at two lengths or more")
    return list(longest.values())


def draw(
    axes: Axes,
    series: Sequence[CaseResult],
    metric: str,
    write: Callable[[float], str],
    base: int,
    multiples: tuple[int, ...],
) -> None:
    """Draw a metric of each implementation against the length: medians, with bars over the range of the rounds.

    Args:
        axes: to draw on.
        series: results in order of length.
        metric: "time" or "memory".
        write: formats a value.
        base: of the logarithmic ticks.
        multiples: of the powers of the base that get a tick.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    ends: list[tuple[float, str, str]] = []  # of each line: its last value, label, colour
    for name, colour in COLOURS.items():
        here = [result for result in series if name in result.runs and result.runs[name].median(metric)]
        if not here:
            continue
        rounds = [[value for value in result.runs[name].values(metric) if value > 0] for result in here]
        medians = [statistics.median(values) for values in rounds]
        bars = [[median - min(values) for median, values in zip(medians, rounds, strict=True)]]
        bars.append([max(values) - median for median, values in zip(medians, rounds, strict=True)])
        style = {"linestyle": "--", "linewidth": 1.2} if name == MACHINE else {"linewidth": 1.8}
        tokens = [result.case.tokens for result in here]
        axes.errorbar(tokens, medians, yerr=bars, color=colour, marker="o", markersize=3.5, **style)
        ratio = here[-1].ratio(name, metric) if name in BACKENDS else None
        label = f"{LABELS.get(name, name)}: {write(medians[-1])}"
        ends.append((medians[-1], label + (f" ({fraction(ratio.median)})" if ratio else ""), colour))
    tokens = [result.case.tokens for result in series]
    axes.set(xscale="log", yscale="log", xlabel="source tokens", xlim=(0.9 * tokens[0], 1.1 * tokens[-1]))
    axes.set_xticks(tokens, [f"{number:,}" for number in tokens])
    axes.yaxis.set_major_locator(LogLocator(base, multiples, numticks=99))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"\.0+(?= )", "", write(value))))
    axes.tick_params(which="minor", length=0, labelbottom=False, labelleft=False)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    heights = [axes.transLimits.transform((0, math.log10(value)))[1] for value, _, _ in ends]
    for height, (_, label, colour) in zip(spread_out(heights), ends, strict=True):
        axes.text(1.02, height, label, color=colour, fontsize=9, va="center", transform=axes.transAxes)


def spread_out(heights: Sequence[float], distance: float = LABEL_DISTANCE) -> list[float]:
    """Move heights up until each is at least a distance above the one below."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + distance)
    return moved
