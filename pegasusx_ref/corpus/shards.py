"""A table in shards: parquet files that are there completely or not at all."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pegasusx_ref.corpus.documents import BOOLEAN, INTEGER, JSON, NUMBER, STRING, Kind, as_kind
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.reading import reading
from pegasusx_ref.files.tables import check_pyarrow
from pegasusx_ref.files.writing import locking, replacing

SHARD = re.compile(r"part-(\d{5,})\.parquet")
METADATA = b"pegasusx-ref"
RESULT = {"summary": STRING, "num_tokens": INTEGER, "num_dropped": INTEGER, "num_parts": INTEGER, "error": STRING}
ORIGIN = {"key": STRING, "file": STRING, "row": INTEGER}


class Shards:
    """The shards of a table in a folder.

    Args:
        folder: of the shards; it is created if it is missing.
        kinds: of the columns that are kept from the input; a name that the results have gets "input_" in front.
        settings: how the summaries were made, for the metadata of each shard.
        resume: continue a table that was begun with the same settings.

    Attributes:
        names: of the input's columns in the table.
        done: number of rows by key.

    Raises:
        InputError: there are shards already, or not those of such a run.
        ExtraError: pyarrow is missing.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, Kind], settings: Mapping[str, Any], resume: bool) -> None:
        check_pyarrow(folder)
        import pyarrow

        self.folder, self.settings = folder, json.loads(json.dumps(settings, default=str))
        results = ORIGIN | RESULT
        self.names = {name: f"input_{name}" if name in results else name for name in kinds}
        self.kinds = {self.names[name]: kind for name, kind in kinds.items()}
        arrow = {STRING: pyarrow.string(), INTEGER: pyarrow.int64(), NUMBER: pyarrow.float64(), JSON: pyarrow.string()}
        arrow[BOOLEAN] = pyarrow.bool_()
        fields = [(name, arrow.get(kind, kind)) for name, kind in (self.kinds | results).items()]
        self.schema = pyarrow.schema(fields, {METADATA: json.dumps(self.settings).encode()})
        existing = self._existing()
        if existing and not resume:
            raise InputError(f"{folder} holds a table already: continue it with --resume, or name another folder")
        self._next = max(existing, default=-1) + 1
        self.done = Counter(key for number in existing for key in self._keys(number))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing into the folder.

        Raises:
            InputError: one does.
        """
        with locking(self.folder / ".lock") as is_free:
            if not is_free:
                raise InputError(f"{self.folder}: another process writes into it: wait for it, or name another folder")
            yield

    def kept(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the input's columns of a row under their names in the table.

        Raises:
            InputError: a column that no file had when the run began.
        """
        if unknown := [name for name in columns if name not in self.names]:
            raise InputError(
                f"column {shown(unknown[0])} is new: a file changed during the run; resume it in a new folder"
            )
        return {self.names[name]: value for name, value in columns.items()}

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a shard: under a temporary name, which is replaced when all is on the disk.

        Args:
            rows: values by column; those of the input under the names that `names` gives them.

        Raises:
            OutputError: it cannot be written.
        """
        if not rows:
            return
        import pyarrow
        import pyarrow.parquet

        stored = [{name: as_kind(row.get(name), self.kinds.get(name)) for name in self.schema.names} for row in rows]
        with replacing(self._path(self._next)) as temporary:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(stored, self.schema), temporary)
        self._next += 1

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def _existing(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
        shards = {name: match for name in names if (match := SHARD.fullmatch(name))}
        if others := sorted({*names} - {*shards}):
            raise InputError(
                f"{self.folder} holds other files, such as {shown(others[0])}: name a folder for the table"
            )
        return sorted(int(match[1]) for match in shards.values())

    def _keys(self, number: int) -> list[str]:
        import pyarrow.parquet

        path = self._path(number)
        with reading(path, "a shard of a run", InputError):
            table = pyarrow.parquet.read_table(path, columns=["key"])
            settings = json.loads(table.schema.metadata[METADATA])
            keys: list[str] = table["key"].to_pylist()
        for name in sorted({*settings, *self.settings}):
            before, now = settings.get(name), self.settings.get(name)
            if before != now:
                raise InputError(
                    f"{path} was written with {name}={shown(before)}, not {shown(now)}: repeat the run's options, or "
                    "name another folder"
                )
        return keys
