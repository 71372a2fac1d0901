"""Steps as the lines of a table: the blocks of a layer folded to one, scopes as headings."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.checkpoint.files import finite_or_word
from pegasusx_ref.rendering.tables import Table, count, dimensions, number, size
from pegasusx_ref.study.steps import Step
from pegasusx_ref.study.watching import Summary, joined

SCOPES = re.compile(r"(encoder|decoder)(?:\.(layers\.[\d*]+))?(?:\.((?:self|encoder)_attn))?\.(.+)")


class Row(NamedTuple):
    """A line of the table: a step, or the steps of all blocks of a layer.

    Attributes:
        name: of the trace point, "local.*" for all blocks.
        letters: its dimensions.
        shape: their sizes; where blocks differ, "from-to".
        tensors: how many the row stands for.
        size: elements of all of them.
        flops: of all of them.
        summary: of all of them; None where nothing ran.
    """

    name: str
    letters: str
    shape: tuple[int | str, ...]
    tensors: int
    size: int
    flops: int
    summary: Summary | None


def rows_of(steps: Iterable[Step], summaries: Mapping[str, Summary] | None = None, fold: str = "blocks") -> list[Row]:
    """Put steps into rows.

    Args:
        steps: in the order of the table.
        summaries: of every one of them; None where nothing ran.
        fold: "blocks": those of a layer are one row; "layers": so are all layers; "nothing".
    """
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(folded_name(step.name, fold), []).append(step)
    rows = []
    for name, members in groups.items():
        shape = tuple(span(sizes) for sizes in zip(*(step.shape for step in members), strict=True))
        summary = None if summaries is None else joined(summaries[step.name] for step in members)
        totals = len(members), sum(step.size for step in members), sum(step.flops for step in members)
        rows.append(Row(name, members[0].letters, shape, *totals, summary))
    return rows


def folded_name(name: str, fold: str) -> str:
    """Give the name of the row that a step belongs to; see `rows_of`."""
    if fold != "nothing":
        name = re.sub(r"\blocal\.\d+", "local.*", name)
    return re.sub(r"\blayers\.\d+", "layers.*", name) if fold == "layers" else name


def span(sizes: Iterable[int]) -> int | str:
    """Write the sizes of one dimension: the only one, or the smallest and the largest."""
    least, most = min(sizes := list(sizes)), max(sizes)
    return least if least == most else f"{least}-{most}"


def as_table(rows: list[Row], dtype: str) -> Table:
    """Write rows as a tree, a heading with the sums of what is in it for each scope.

    Args:
        rows: from `rows_of`.
        dtype: that the tensors have or would have, for their bytes.
    """
    itemsize = numpy_dtype(dtype).itemsize
    measured = any(row.summary for row in rows)
    masked = any(row.summary and row.summary.masked for row in rows)
    header = ["step", "shape", *(["dtype", "min", "max", "rms"] if measured else [])]
    header += [*(["masked"] if masked else []), "FLOPs", "bytes"]
    blanks = [""] * (len(header) - 3)
    lines: list[list[str]] = []
    headings: list[int] = []
    scope: tuple[str, ...] = ()
    for row in rows:
        *path, leaf = scopes_of(row.name)
        for depth in range(len(path)):
            opened = tuple(path[: depth + 1])
            if scope[: depth + 1] != opened:
                inside = [other for other in rows if scopes_of(other.name)[: depth + 1] == list(opened)]
                sums = count(sum(r.flops for r in inside)), size(itemsize * sum(r.size for r in inside))
                headings.append(len(lines))
                lines.append(["  " * depth + path[depth], *blanks, *sums])
        scope = tuple(path)
        times = f" × {row.tensors}" if row.tensors > 1 else ""
        cells = ["  " * len(path) + leaf + times, dimensions(row.letters, row.shape)]
        if measured and row.summary is not None:
            summary = row.summary
            cells += [summary.dtype, *(number(value) for value in (summary.minimum, summary.maximum, summary.rms))]
            cells += [count(summary.masked) if summary.masked else ""] if masked else []
        lines.append([*cells, count(row.flops), size(itemsize * row.size)])
    return Table(header, list(lines), left=3 if measured else 2, headings=frozenset(headings))


def scopes_of(name: str) -> list[str]:
    """Take a name apart into the scopes that are headings, and the rest."""
    match = SCOPES.fullmatch(name)
    return [part for part in match.groups() if part] if match else [name]


def as_dict(row: Row, dtype: str) -> dict[str, Any]:
    """Make an object that JSON can hold: numbers that are not finite become words."""
    entries: dict[str, Any] = {key: value for key, value in row._asdict().items() if key not in ("size", "summary")}
    entries["bytes"] = numpy_dtype(dtype).itemsize * row.size
    if row.summary is not None:
        entries |= row.summary._asdict()
    return {key: finite_or_word(value) for key, value in entries.items()}
