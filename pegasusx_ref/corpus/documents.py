"""Documents from files: folders of texts, and tables whose other columns are kept; on this machine or by fsspec."""

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from pegasusx_ref.errors import ExtraError, InputError, printable, reason, shown
from pegasusx_ref.files.reading import as_path, open_regular, reading
from pegasusx_ref.files.tables import TABLES, check_readable

TEXTS = (".txt", ".text", ".md")  # what a folder is searched for, besides tables
MAX_SIZE = 2**26  # bytes of a text file
Kind = Any  # of a column: a data type of pyarrow, or one of the names below
STRING, INTEGER, NUMBER, BOOLEAN, JSON = "string", "integer", "number", "boolean", "JSON"


class Document(NamedTuple):
    """A document, or a row that has none.

    Attributes:
        file: its file.
        row: the row's place there; 0 for a text file.
        text: the text; anything else is an error of its own.
        columns: the row's other columns.
        problem: why the row cannot be read, or None.
    """

    file: str
    row: int
    text: Any
    columns: Mapping[str, Any] = {}
    problem: str | None = None

    @property
    def key(self) -> str:
        """What a resumed run recognizes the document by: 128 bits of the SHA-256 of its text."""
        text = self.text if isinstance(self.text, str) else f"{self.problem} {self.text!r}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Documents:
    """The documents of some files, in order; they can be read several times.

    The files are read once at the beginning, to count them and to learn the kinds of the other columns.

    Args:
        names: files, folders, patterns such as "texts/*.jsonl", or addresses of fsspec such as "s3://bucket/texts".
        column: of a table, that holds the texts.

    Attributes:
        files: found, in order.
        kinds: of the other columns of all tables, by name.
        num_rows: number of documents.
        num_left_out: files in folders that are neither texts nor tables.

    Raises:
        InputError: a file that is missing or cannot be read, or a table without the column.
        ExtraError: parquet needs pyarrow, addresses need fsspec.
    """

    def __init__(self, names: Sequence[str | Path], column: str) -> None:
        self.column = column
        self.num_left_out = 0
        self.files = [file for name in names for file in self._expand(str(name))]
        self.kinds: dict[str, Kind] = {}
        self.num_rows = 0
        self._unknown: set[str] = set()  # columns without a value so far
        for file in self.files:
            check_readable(file)
            self._survey(file)
        self.kinds |= dict.fromkeys(self._unknown - {*self.kinds}, STRING)

    def __iter__(self) -> Iterator[Document]:
        for file in self.files:
            yield from self._documents(file)

    def _expand(self, name: str) -> list[str]:
        """List the files that a name stands for."""
        if "://" in name:
            return self._expand_address(name)
        path = as_path(name)
        if "\0" in name:
            raise InputError(f"{shown(name)} is not a path: it contains a zero byte")
        if path.is_dir():
            files = sorted(str(each) for each in path.rglob("*") if each.is_file() and not _is_hidden(each, path))
            return self._of_folder(name, files)
        if not path.exists() and glob.has_magic(name):
            files = sorted(each for each in glob.glob(name, recursive=True) if Path(each).is_file())  # noqa: PTH207 - patterns may be absolute
            if not files:
                raise InputError(f"{printable(name)} matches no file")
            return files
        if not path.exists():
            raise InputError(f"{printable(name)}: there is no such file or folder")
        return [name]

    def _expand_address(self, name: str) -> list[str]:
        with reading(name, "an address that fsspec can open here", InputError):
            system, path = file_system(name)
            if glob.has_magic(path):
                files = [each for each in sorted(system.glob(path)) if system.isfile(each)]
                if not files:
                    raise InputError("matches no file")
                return [system.unstrip_protocol(each) for each in files]
            if system.isdir(path):
                return self._of_folder(name, [system.unstrip_protocol(each) for each in sorted(system.find(path))])
            if not system.exists(path):
                raise InputError("there is no such file or folder")
            return [system.unstrip_protocol(path)]

    def _of_folder(self, name: str, files: list[str]) -> list[str]:
        found = [file for file in files if Path(file).suffix in (*TEXTS, *TABLES)]
        self.num_left_out += len(files) - len(found)
        if not found:
            raise InputError(f"{printable(name)}: no file in it ends in {', '.join((*TEXTS, *TABLES))}")
        return found

    def _survey(self, file: str) -> None:
        """Count the rows of a file, and learn the kinds of its columns; a text is not read for that."""
        if Path(file).suffix not in TABLES:
            self.num_rows += 1
            return
        if Path(file).suffix == ".parquet":
            with reading(file, "a parquet file", InputError), open_file(file) as raw:
                from pyarrow.parquet import ParquetFile

                with ParquetFile(raw) as table:
                    fields = {field.name: field.type for field in table.schema_arrow}
                    self.num_rows += table.metadata.num_rows
                if self.column not in fields:
                    raise InputError(self._no_column(fields))
            for name, kind in fields.items():
                self._learn(name, kind, file)
            return
        has_column = False
        names: dict[str, Any] = {}
        for document in self._documents(file):
            self.num_rows += 1
            has_column = has_column or document.problem is None
            names |= document.columns
            for name, value in document.columns.items():
                self._learn(name, kind_of(value), file)
        if names and not has_column:
            raise InputError(f"{printable(file)}: {self._no_column(names)}")

    def _learn(self, name: str, kind: Kind, file: str) -> None:
        if name == self.column:
            return
        if kind is None:
            self._unknown.add(name)
            return
        known = self.kinds.setdefault(name, kind)
        if known == kind:
            return
        if {known, kind} == {INTEGER, NUMBER}:
            self.kinds[name] = NUMBER
        elif isinstance(known, str) and isinstance(kind, str):
            self.kinds[name] = JSON
        else:
            raise InputError(
                f"{printable(file)}: column {shown(name)} is {kind} here and {known} in an earlier file: convert one, "
                "or run the files one by one"
            )

    def _documents(self, file: str) -> Iterator[Document]:
        suffix = Path(file).suffix
        if suffix not in TABLES:
            yield text_file(file)
            return
        with reading(file, f"a {suffix} file", InputError), open_file(file) as raw:
            for place, row in TABLES[suffix](raw, None):
                if isinstance(row, str):
                    yield Document(file, place, None, {}, row)
                    continue
                others = {name: value for name, value in row.items() if name != self.column}
                problem = None if self.column in row else self._no_column(row)
                yield Document(file, place, row.get(self.column), others, problem)

    def _no_column(self, row: Mapping[str, Any]) -> str:
        names = ", ".join(map(shown, list(row)[:5])) or "none"
        return f"no column {shown(self.column)} among {names}: name the column of the texts"


def text_file(file: str) -> Document:
    """Read a text file as a document."""
    try:
        with open_file(file) as raw:
            content = raw.read(MAX_SIZE + 1)
        if len(content) > MAX_SIZE:
            return Document(file, 0, None, {}, f"has more than {MAX_SIZE} bytes")
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Document(file, 0, None, {}, f"not UTF-8 text (byte {error.start})")
    except OSError as error:
        return Document(file, 0, None, {}, f"cannot be read: {reason(error)}")
    if "\0" in text:
        return Document(file, 0, None, {}, "a binary file, not text (it contains a zero byte)")
    return Document(file, 0, text)


def open_file(file: str) -> IO[bytes]:
    """Open a file of this machine, or an address of fsspec."""
    if "://" not in file:
        return open_regular(as_path(file))
    system, path = file_system(file)
    opened: IO[bytes] = system.open(path, "rb")
    return opened


def file_system(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path there."""
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    except ImportError:
        raise ExtraError(f"{address}: addresses need fsspec: pip install 'pegasusx-ref[corpora]'") from None
    system, path = url_to_fs(address)
    return system, path


def kind_of(value: Any) -> Kind:
    """Return the kind of a value; None for a missing one."""
    if value is None:
        return None
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int):
        return INTEGER if -(2**63) <= value < 2**63 else JSON
    return NUMBER if isinstance(value, float) else STRING if isinstance(value, str) else JSON


def as_kind(value: Any, kind: Kind) -> Any:
    """Return a value as its column stores it: a column of several kinds, or of lists and objects, holds JSON."""
    if kind != JSON or value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
