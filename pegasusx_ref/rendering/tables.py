"""Numbers and tables as text: counts with SI prefixes, sizes in bytes, aligned columns."""

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Rows of text.

    Attributes:
        header: the names of the columns.
        rows: one cell for each column.
        left: how many columns, from the first, are left-aligned text; the others are right-aligned numbers.
        headings: indices of the rows that are headings or totals.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    headings: frozenset[int] = frozenset()


def as_lines(table: Table) -> list[str]:
    """Format a table as aligned text, never wrapped or truncated: piped output does not depend on a terminal."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    adjust = [str.ljust if i < table.left else str.rjust for i in range(len(widths))]
    return ["  ".join(f(cell, w) for f, cell, w in zip(adjust, line, widths, strict=True)).rstrip() for line in lines]


def count(number: int) -> str:
    """Format a count with three digits and an SI prefix; 0 is a dash."""
    return scaled(number, 1000, ("", " k", " M", " G", " T", " P", " E"))


def size(num_bytes: int) -> str:
    """Format a number of bytes in B, KiB, MiB, …; 0 is a dash."""
    return scaled(num_bytes, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"))


def scaled(number: int, step: int, units: Sequence[str]) -> str:
    """Format a number in the largest unit in which it is at least 1.

    Args:
        number: in the first unit.
        step: factor from each unit to the next.
        units: suffixes, the smallest unit first.
    """
    if not number:
        return "-"
    value, power = float(number), 0
    while round(value, 1 if power else 0) >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    digits = 0 if not power or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}{units[power]}"


def counted(number: int, noun: str, plural: str = "", separator: str = ",") -> str:
    """Format an exact count with its noun, as in "1,234 tokens"; without a separator, as in "1234 tokens"."""
    return f"{number:{separator}} {noun if number == 1 else plural or noun + 's'}"


def number(value: float) -> str:
    """Format a measured number with three significant digits."""
    return f"{value:.3g}"


def dimensions(letters: str, sizes: Sequence[int | str]) -> str:
    """Format a shape with its dimension letters, as in "BTD 1×33×192"."""
    return f"{letters} {'×'.join(map(str, sizes))}"
