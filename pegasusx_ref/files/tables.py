"""Tables, read row by row: JSONL, CSV and parquet."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pegasusx_ref.errors import ExtraError, reason, shown

MAX_FIELD = 2**26  # characters of a CSV field, as many as a text of the command line may have bytes

Row = tuple[int, Mapping[str, Any] | str]  # its place, and its values by column or what is wrong with it
Columns = tuple[str, ...] | None  # the columns that are wanted; None means all


def check_readable(path: Path | str) -> None:
    """Check that what reads a table is installed.

    Raises:
        ExtraError: .parquet needs the extra "corpora".
    """
    if Path(path).suffix == ".parquet":
        check_pyarrow(path)


def check_pyarrow(path: Path | str) -> None:
    """Check that pyarrow is installed.

    Args:
        path: what needs it, for the message.

    Raises:
        ExtraError: it is missing.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ExtraError(f"{path}: parquet needs pyarrow: pip install 'pegasusx-ref[corpora]'") from None


def jsonl_rows(file: IO[bytes], _: Columns = None) -> Iterator[Row]:
    """Read a JSON object from each line; the place is the line's number."""
    for place, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if place == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            yield place, f"not JSON ({reason(error)})"
        else:
            yield place, row if isinstance(row, dict) else f"{shown(row)} is not a JSON object"


def csv_rows(file: IO[bytes], _: Columns = None) -> Iterator[Row]:
    """Read a CSV file with a header; the place is the number of the row's last line."""
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            for row in rows:
                yield rows.line_num, {name: text for name, text in row.items() if isinstance(name, str)}
    finally:
        csv.field_size_limit(limit)


def parquet_rows(file: IO[bytes], columns: Columns = None) -> Iterator[Row]:
    """Read the rows of a parquet file; the place is the row's number."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        names = None if columns is None else [name for name in table.schema_arrow.names if name in columns]
        batches = table.iter_batches(batch_size=1024, columns=names or None)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


TABLES: dict[str, Callable[[IO[bytes], Columns], Iterator[Row]]] = {
    ".jsonl": jsonl_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
