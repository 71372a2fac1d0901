"""The steps of a run as a table: a row for the blocks of a layer together, a heading for each scope."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.files.json_files import finite_or_word
from pegasusx_ref.rendering.tables import Table, count, dimensions, number, size
from pegasusx_ref.study.shape_inference import Step
from pegasusx_ref.study.tensor_statistics import Statistics, combined

SCOPES = re.compile(r"(encoder|decoder)(?:\.(layers\.[\d*]+))?(?:\.((?:self|encoder)_attn))?\.(.+)")


class Row(NamedTuple):
    """A row of the table: a step, or the steps of all blocks of a layer.

    Attributes:
        name: of the trace point, with "local.*" for all blocks.
        letters: its dimensions.
        shape: their sizes; "from-to" where blocks differ.
        tensors: number of tensors that the row covers.
        size: their elements in total.
        flops: their FLOPs in total.
        statistics: of their union; None without a run.
    """

    name: str
    letters: str
    shape: tuple[int | str, ...]
    tensors: int
    size: int
    flops: int
    statistics: Statistics | None


def table_rows(
    steps: Iterable[Step], statistics: Mapping[str, Statistics] | None = None, fold: str = "blocks"
) -> list[Row]:
    """Group steps into rows.

    Args:
        steps: in the order of the table.
        statistics: of each step by name; None without a run.
        fold: "blocks": one row for all blocks of a layer; "layers": also one for all layers; "nothing".
    """
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(folded_name(step.name, fold), []).append(step)
    rows = []
    for name, members in groups.items():
        shape = tuple(size_range(sizes) for sizes in zip(*(step.shape for step in members), strict=True))
        joint = None if statistics is None else combined(statistics[step.name] for step in members)
        totals = len(members), sum(step.size for step in members), sum(step.flops for step in members)
        rows.append(Row(name, members[0].letters, shape, *totals, joint))
    return rows


def folded_name(name: str, fold: str) -> str:
    """Return the name of the row that a step belongs to; see `table_rows`."""
    if fold != "nothing":
        name = re.sub(r"\blocal\.\d+", "local.*", name)
    return re.sub(r"\blayers\.\d+", "layers.*", name) if fold == "layers" else name


def size_range(sizes: Iterable[int]) -> int | str:
    """Return the size that a dimension has in all tensors, or "smallest-largest"."""
    least, most = min(sizes := list(sizes)), max(sizes)
    return least if least == most else f"{least}-{most}"


def as_table(rows: list[Row], dtype: str) -> Table:
    """Arrange rows as a tree: each scope has a heading with the sums of its rows.

    Args:
        rows: from `table_rows`.
        dtype: of the tensors, for their sizes in bytes.
    """
    itemsize = numpy_dtype(dtype).itemsize
    measured = any(row.statistics for row in rows)
    masked = any(row.statistics and row.statistics.masked for row in rows)
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
        if row.statistics is not None:
            dtype_name, *figures, _, num_masked = row.statistics
            cells += [dtype_name, *map(number, figures), *([count(num_masked) if num_masked else ""] if masked else [])]
        lines.append([*cells, count(row.flops), size(itemsize * row.size)])
    return Table(header, list(lines), left=3 if measured else 2, headings=frozenset(headings))


def scopes_of(name: str) -> list[str]:
    """Split a name into the scopes that have headings, and the rest."""
    match = SCOPES.fullmatch(name)
    return [part for part in match.groups() if part] if match else [name]


def as_dict(row: Row, dtype: str) -> dict[str, Any]:
    """Convert a row to JSON values: numbers that are not finite become strings."""
    entries: dict[str, Any] = {key: value for key, value in row._asdict().items() if key not in ("size", "statistics")}
    entries["bytes"] = numpy_dtype(dtype).itemsize * row.size
    if row.statistics is not None:
        entries |= row.statistics._asdict()
    return {key: finite_or_word(value) for key, value in entries.items()}
