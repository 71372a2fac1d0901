"""The msgpack format, without copies: strings of bytes and extensions stay views of the file. [spec 14.11]"""

import struct
from typing import Any, NamedTuple

MAX_VALUES = 150_000  # the parameters and the optimizer's state of a model with 512 layers
MAX_DEPTH = 64  # maps and arrays inside each other
MAX_TEXT = 2**16  # bytes of a text
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# Of every first byte from 0xC4 on: the kind of value, and the bytes of its size; of a number or a fixext, its own size.
KINDS = [
    (kind, size)
    for kind, sizes in (
        ("bytes", (1, 2, 4)), ("extension", (1, 2, 4)), ("float", (4, 8)), ("unsigned", (1, 2, 4, 8)),
        ("signed", (1, 2, 4, 8)), ("fixext", (1, 2, 4, 8, 16)), ("text", (1, 2, 4)), ("array", (2, 4)), ("map", (2, 4)),
    )
    for size in sizes
]  # fmt: skip


class Extension(NamedTuple):
    """A value of a type that the application defines.

    Attributes:
        code: of the type.
        data: of the value.
    """

    code: int
    data: memoryview


def parse_msgpack(data: memoryview) -> Any:
    """Parse one value and all inside it; for use inside `reading`, which makes one error of all.

    Args:
        data: its bytes.

    Returns:
        Numbers, texts, lists, dictionaries with texts as keys; a memoryview for bytes, an `Extension`.

    Raises:
        ValueError: not the format, or too many values.
        RecursionError: nested too deeply.

    Source: https://github.com/msgpack/msgpack/blob/master/spec.md, "Formats".
    """
    parser = _Parser(data)
    value = parser.value(0)
    if parser.position != len(data):
        raise ValueError(f"{len(data) - parser.position:,} bytes follow the end of its content")
    return value


class _Parser:
    """Reads values one after the other: a wrong size ends at the end of the data, before memory is allocated for it."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position, self.num_values = data, 0, 0

    def take(self, size: int) -> memoryview:
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise ValueError("its end is missing: download or copy it again")
        return self.data[start : self.position]

    def value(self, depth: int) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 0x100
        if first in CONSTANTS:
            return CONSTANTS[first]
        if first == 0xC1:
            raise ValueError("the byte 0xc1, which begins no value")
        kind, size = self.head(first)
        match kind:
            case "unsigned" | "signed":
                return int.from_bytes(self.take(size), "big", signed=kind == "signed")
            case "float":
                return struct.unpack(">f" if size == 4 else ">d", self.take(size))[0]
            case "bytes":
                return self.take(size)
            case "extension" | "fixext":
                return Extension(self.take(1)[0], self.take(size))
            case "text":
                if size > MAX_TEXT:
                    raise ValueError(f"a text of {size:,} bytes, at most {MAX_TEXT:,} are read")
                return str(self.take(size), "utf-8")
        if depth == MAX_DEPTH:
            raise RecursionError
        if kind == "array":
            return [self.value(depth + 1) for _ in range(size)]
        entries: dict[str, Any] = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in entries:
                raise ValueError("a key that is no text, or is there twice")
            entries[key] = self.value(depth + 1)
        return entries

    def head(self, first: int) -> tuple[str, int]:
        """Return the kind of a value, and its size in bytes or entries."""
        if first < 0x90:
            return "map", first & 0xF
        if first < 0xA0:
            return "array", first & 0xF
        if first < 0xC0:
            return "text", first & 0x1F
        kind, size = KINDS[first - 0xC4]
        has_size = kind not in ("float", "unsigned", "signed", "fixext")
        return kind, int.from_bytes(self.take(size), "big") if has_size else size
