"""Files of pairs: JSONL, CSV and parquet. Broken rows are counted and left out."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.reading import as_path, open_regular, reading
from pegasusx_ref.files.tables import TABLES, check_readable


class Pair(NamedTuple):
    """A document and its summary.

    Attributes:
        place: number of the row: of the line where the format has lines.
        source: the document.
        target: the summary.
    """

    place: int
    source: str
    target: str


class Corpus(NamedTuple):
    """The pairs of a file.

    Attributes:
        name: of the file.
        pairs: the good rows.
        num_skipped: number of broken rows.
        first_skipped: place of the first of them, and what is wrong with it.
    """

    name: str
    pairs: list[Pair]
    num_skipped: int = 0
    first_skipped: str = ""


def read_corpus(path: str | Path, source_column: str, target_column: str) -> Corpus:
    """Read the pairs of a file: .jsonl, .csv or .parquet.

    Args:
        path: the file.
        source_column: name of the documents' column.
        target_column: name of the summaries' column.

    Raises:
        InputError: the file cannot be read, or has no good row.
        ExtraError: .parquet needs the extra "corpora".
    """
    path = as_path(path)
    if path.suffix not in TABLES:
        raise InputError(f"{path}: extension {path.suffix!r} is not one of {', '.join(TABLES)}: name the file so")
    check_readable(path)
    columns = (source_column, target_column)
    pairs: list[Pair] = []
    num_skipped, first, has_rows = 0, "", False
    with reading(path, f"a {path.suffix} file of pairs", InputError), open_regular(path) as file:
        for place, row in TABLES[path.suffix](file, columns):
            problem = row if isinstance(row, str) else _problem(row, columns)
            has_rows |= not isinstance(row, str)
            if isinstance(row, str) or problem:
                num_skipped += 1
                first = first or f"row {place}: {problem}"
            else:
                pairs.append(Pair(place, row[source_column], row[target_column]))
    if not pairs:
        remedy = "name the columns that hold the texts" if has_rows else "write pairs into it"
        raise InputError(
            f"{path}: no row has a text in the columns {shown(source_column)} and {shown(target_column)}"
            f"{f' ({first})' if first else ', because it has no rows'}: {remedy}"
        )
    return Corpus(str(path), pairs, num_skipped, first)


def _problem(row: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    """Describe what is wrong with a row; nothing if it is a pair."""
    for column in columns:
        text = row.get(column)
        if column not in row:
            return f"no column {shown(column)} among {', '.join(map(shown, islice(row, 5))) or 'none'}"
        if not isinstance(text, str):
            return f"column {shown(column)} holds {shown(text)}, not a text"
        if not text.strip():
            return f"column {shown(column)} is empty"
    return ""
