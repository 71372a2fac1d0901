"""The picture of how time and memory grow with the length of the text: a line an implementation, named at its end."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pegasusx_ref.benchmarking.cases import MACHINE, OURS, THEIRS, Case
from pegasusx_ref.benchmarking.comparing import figures, median, ratio
from pegasusx_ref.benchmarking.results import CaseResult, Results
from pegasusx_ref.benchmarking.table import duration, fraction
from pegasusx_ref.errors import InputError
from pegasusx_ref.rendering.canvas import BLUE, GREY, ORANGE, new_axes, new_figure, title
from pegasusx_ref.rendering.tables import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN = "#009E73"  # the third of Okabe and Ito's colours
COLOURS = {THEIRS: "black", "torch": BLUE, "numpy": ORANGE, "cupy": GREEN, MACHINE: GREY}
NAMES = {MACHINE: "the machine's limit"}
LEAST_GAP = 0.06  # between two labels, of the height of the axes


def scaling(results: Results) -> Figure:
    """Draw time and peak memory of the encoder against the number of tokens, on logarithmic axes.

    Args:
        results: of a run; of its models the one that was measured at most lengths is drawn.

    Raises:
        InputError: no model was measured at two lengths.
        ExtraError: matplotlib is not installed.
    """
    series = longest_series(results)
    case = series[0].case
    figure = new_figure(11, 4.4)
    left, right = new_axes(figure, 121), new_axes(figure, 122)
    title(left, f"Time of the encoder, {case.preset}, {case.dtype} (ratio to {case.reference})")
    draw(left, series, "time", decimal_ticks, duration)
    title(right, f"Its peak memory above the weights (ratio to {case.reference})")
    draw(right, series, "memory", binary_ticks, lambda peak: size(round(peak)))
    return figure


def longest_series(results: Results) -> list[CaseResult]:
    """Find what there is to draw: the results of `longest_line`."""
    return [results.cases[case.name] for case in longest_line(result.case for result in results.cases.values())]


def longest_line(cases: Iterable[Case]) -> list[Case]:
    """Choose the encoder cases of the model that has most lengths, the shortest first.

    Raises:
        InputError: no model is among them at two lengths.
    """
    lines: dict[tuple[str, str], dict[int, Case]] = {}
    for case in sorted(cases, key=lambda case: case.tokens):
        if case.kind == "encoder":
            lines.setdefault((case.preset, case.dtype), {})[case.tokens] = case
    longest = max(lines.values(), key=len, default={})
    if len(longest) < 2:
        raise InputError("nothing to draw: the picture takes encoder cases of one model at two lengths or more")
    return list(longest.values())


def draw(
    axes: Axes,
    series: list[CaseResult],
    figure: str,
    ticks: Callable[[float, float], list[float]],
    written: Callable[[float], str],
) -> None:
    """Draw one figure of all implementations against the length, with bars from the least round to the greatest.

    Args:
        axes: where.
        series: the cases.
        figure: "time" or "memory".
        ticks: gives the values that are marked between two.
        written: writes a value.
    """
    labels: list[tuple[float, str, str]] = []  # value at the end of the line, text, colour
    lowest, highest = math.inf, 0.0
    for who, colour in COLOURS.items():
        here = [result for result in series if who in result.runs and (median(result.runs[who], figure) or 0) > 0]
        if not here:
            continue
        x = [result.case.tokens for result in here]
        rounds = [[value for value in figures(result.runs[who], figure) if value > 0] for result in here]
        middle = [median(result.runs[who], figure) or 0.0 for result in here]
        bars = [[m - min(r) for m, r in zip(middle, rounds, strict=True)]]
        bars.append([max(r) - m for m, r in zip(middle, rounds, strict=True)])
        dashes = "--" if who == MACHINE else "-"
        width = 1.2 if who == MACHINE else 1.8
        axes.errorbar(x, middle, yerr=bars, color=colour, linestyle=dashes, linewidth=width, marker="o", markersize=3.5)
        compared = ratio(here[-1], who, figure) if who in OURS else None
        text = f"{NAMES.get(who, who)}: {written(middle[-1])}" + (f" ({fraction(compared.median)})" if compared else "")
        labels.append((middle[-1], text, colour))
        lowest, highest = min(lowest, *map(min, rounds)), max(highest, *map(max, rounds))
    tokens = [result.case.tokens for result in series]
    axes.set(xscale="log", yscale="log", xlabel="source tokens", xlim=(0.9 * tokens[0], 1.1 * tokens[-1]))
    axes.set_xticks(tokens, [f"{number:,}" for number in tokens])
    axes.tick_params(which="minor", length=0, labelbottom=False, labelleft=False)
    if not labels:
        axes.set_yticks([])
        return
    low, high = 0.8 * lowest, 1.3 * highest
    axes.set_ylim(low, high)
    marked = ticks(low, high)
    axes.set_yticks(marked, [plain(written(value)) for value in marked])
    axes.grid(color="#E4E4E4", linewidth=0.6)
    heights = [math.log(value / low) / math.log(high / low) for value, _, _ in labels]
    for height, (_, text, colour) in zip(spread_out(heights), labels, strict=True):
        axes.text(1.02, height, text, color=colour, fontsize=9, va="center", transform=axes.transAxes)


def spread_out(heights: Sequence[float], gap: float = LEAST_GAP) -> list[float]:
    """Move labels up as far as it takes for none to touch the one below."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved


def plain(number: str) -> str:
    """Leave out the zeros behind a round number's point: 20.0 s is 20 s."""
    return re.sub(r"\.0+(?= )", "", number)


def decimal_ticks(low: float, high: float) -> list[float]:
    """List 1, 2 and 5 times the powers of ten between two values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in powers for n in (1, 2, 5) if low <= (value := n * 10.0**power) <= high]


def binary_ticks(low: float, high: float) -> list[float]:
    """List the powers of two between two values."""
    return [2.0**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
