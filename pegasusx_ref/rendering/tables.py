"""Numbers and tables for people: large counts with a letter, sizes in bytes, columns that stand under each other."""

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Rows of text.

    Attributes:
        header: the columns' names.
        rows: as many cells each.
        left: how many columns, from the first, are words; the others are numbers and stand at the right.
        headings: numbers of the rows that stand above others.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    headings: frozenset[int] = frozenset()


def as_lines(table: Table) -> list[str]:
    """Write a table as aligned text."""
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    adjust = [str.ljust if i < table.left else str.rjust for i in range(len(widths))]
    return ["  ".join(f(cell, w) for f, cell, w in zip(adjust, line, widths, strict=True)).rstrip() for line in lines]


def count(number: int) -> str:
    """Write a count with three digits and a letter for thousands, millions, …; 0 is a dash."""
    return scaled(number, 1000, ("", " k", " M", " G", " T", " P", " E"))


def size(num_bytes: int) -> str:
    """Write a number of bytes in KiB, MiB, ….; 0 is a dash."""
    return scaled(num_bytes, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"))


def scaled(number: int, step: int, units: Sequence[str]) -> str:
    """Divide by a step until less than a step is left, and write the unit behind."""
    if not number:
        return "-"
    value, power = float(number), 0
    while round(value, 1 if power else 0) >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    digits = 0 if not power or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}{units[power]}"


def counted(number: int, noun: str) -> str:
    """Write exactly how many of something there are."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def number(value: float) -> str:
    """Write a measured number with three digits."""
    return f"{value:.3g}"


def dimensions(letters: str, sizes: Sequence[int | str]) -> str:
    """Write a shape with its letters, as in "BTD 1×33×192"."""
    return f"{letters} {'×'.join(map(str, sizes))}"
