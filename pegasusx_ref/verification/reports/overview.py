"""The whole model at a glance: the worst verdict of every kind of tensor in every layer."""

import re
from typing import NamedTuple

from pegasusx_ref.tracing.trace_points import general
from pegasusx_ref.verification import Check, Report
from pegasusx_ref.verification.checking import VERDICTS

OUTSIDE = "outside the layers"


class Map(NamedTuple):
    """Kinds of tensors of one part of the model, by layer.

    Attributes:
        part: "encoder", "decoder", or `OUTSIDE`.
        layers: their numbers; -1 for what lies outside of layers.
        kinds: of each kind of tensor the worst one by layer, in the order of execution.
    """

    part: str
    layers: list[int]
    kinds: dict[str, dict[int, Check]]


def overview(report: Report) -> list[Map]:
    """Sort what was found of tensors by part, kind and layer; of a layer's blocks the worst is taken."""
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
    """Order what was found, from good to bad."""
    return VERDICTS.index(check.verdict), check.rho
