"""Files of pairs: JSONL, CSV and parquet. Broken rows are counted and left out."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pegasusx_ref.errors import ExtraError, InputError, reason, shown
from pegasusx_ref.files.reading import as_path, open_regular, reading

MAX_FIELD = 2**26  # characters of a CSV field, as many as a text of the command line may have bytes


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


Row = tuple[int, Mapping[str, Any] | str]  # its place, and its values by column or what is wrong with it


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
    if path.suffix not in READERS:
        raise InputError(f"{path}: extension {path.suffix!r} is not one of {', '.join(READERS)}: name the file so")
    columns = (source_column, target_column)
    pairs: list[Pair] = []
    num_skipped, first = 0, ""
    rows = READERS[path.suffix](path, columns)
    with reading(path, f"a {path.suffix} file of pairs", InputError):
        for place, row in rows:
            problem = row if isinstance(row, str) else _problem(row, columns)
            if isinstance(row, str) or problem:
                num_skipped += 1
                first = first or f"row {place}: {problem}"
            else:
                pairs.append(Pair(place, row[source_column], row[target_column]))
    if not pairs:
        raise InputError(
            f"{path}: no row has a text in the columns {shown(source_column)} and {shown(target_column)}"
            f"{f' ({first})' if first else ', because it has no rows'}: name the columns that hold the texts"
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


def _jsonl_rows(path: Path, _: tuple[str, ...]) -> Iterator[Row]:
    with open_regular(path) as file:
        for place, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if place == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield place, f"not JSON ({reason(error)})"
            else:
                yield place, row if isinstance(row, dict) else f"{shown(row)} is not a JSON object"


def _csv_rows(path: Path, _: tuple[str, ...]) -> Iterator[Row]:
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        with open_regular(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            for row in rows:
                yield rows.line_num, {name: text for name, text in row.items() if isinstance(name, str)}
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ExtraError(f"{path}: parquet needs pyarrow: pip install 'pegasusx-ref[corpora]'") from None

    def read() -> Iterator[Row]:
        with open_regular(path) as raw, ParquetFile(raw) as file:
            names = [name for name in file.schema_arrow.names if name in columns]
            batches = file.iter_batches(batch_size=1024, columns=names or None)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)

    return read()


READERS = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
