"""The picture of a run: its losses, and ROUGE, against the step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pegasusx_ref.finetuning.evaluation import ROUGE
from pegasusx_ref.finetuning.log import read_log
from pegasusx_ref.rendering.canvas import BLUE, GREY, ORANGE, new_axes, new_figure, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AVERAGED = 50  # points of the training loss at most: each is the mean of as many steps as that takes


def curves_figure(log: Path) -> Figure:
    """Draw the losses of a run and, if it has them, the ROUGE scores.

    Args:
        log: its log.csv.

    Raises:
        ExtraError: matplotlib is not installed.
    """
    records = read_log(log)
    evaluated = [record for record in records if "eval_loss" in record]
    has_rouge = any(ROUGE[0] in record for record in evaluated)
    figure = new_figure(11 if has_rouge else 5.6, 3.8)
    axes = new_axes(figure, 121 if has_rouge else 111)
    title(axes, "Loss in nats a token")
    axes.plot([r["step"] for r in records], [r["loss"] for r in records], color=GREY, linewidth=0.4, alpha=0.5)
    size = max(1, len(records) // AVERAGED)
    groups = [records[start : start + size] for start in range(0, len(records), size)]
    means = [(group[-1]["step"], sum(record["loss"] for record in group) / len(group)) for group in groups]
    label = "training, as optimized" + (f", mean of {size} steps" if size > 1 else "")
    axes.plot(*zip(*means, strict=True), color=BLUE, label=label)
    if evaluated:
        points = [(record["step"], record["eval_loss"]) for record in evaluated]
        axes.plot(*zip(*points, strict=True), color=ORANGE, marker="o", markersize=3.5, label="evaluation")
    finish(axes)
    if has_rouge:
        axes = new_axes(figure, 122)
        title(axes, "ROUGE of summaries, F in percent")
        for kind, colour in zip(ROUGE, (BLUE, ORANGE, GREY), strict=True):
            points = [(record["step"], record[kind]) for record in evaluated]
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5, label=kind)
        finish(axes)
    return figure


def finish(axes: Axes) -> None:
    """Add a legend, and label the steps."""
    axes.legend(frameon=False, fontsize=9)
    axes.set_xlabel("step")
    axes.locator_params("x", integer=True)
