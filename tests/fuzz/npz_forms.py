"""Hostile npz files: other archives, other dtypes, sizes that lie, and small files of much data."""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz.mutations import NUMBERS, Damage

VICTIM = "lm_head"
ZEROS = 2**20  # bytes in one block of a bomb


def npy(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=True)
    return file.getvalue()


def raw_npy(text: str, data: bytes = b"", version: tuple[int, int] = (1, 0), size: int | None = None) -> bytes:
    """Write an npy file with any text as its header."""
    raw = text.encode("latin-1")
    length = (len(raw) if size is None else size).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + raw + data


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a file by the standard library and NumPy alone."""
    return {name.removesuffix(".npy"): np.load(io.BytesIO(content)) for name, content in members(path).items()}


def write(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def replaced(make: Callable[[np.ndarray], bytes]) -> Damage:
    """Replace one member."""

    def damage(rng: Random, path: Path) -> None:
        old, name = members(path), f"{rng.choice((VICTIM, 'input_ids'))}.npy"
        write(path, old | {name: make(np.load(io.BytesIO(old[name])))})

    return damage


def lying(change: str, dtype: str = "<f4", data: bytes = b"") -> Damage:
    return replaced(lambda array: raw_npy(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {change}}}\n", data))


def header_text(text: str, **options: Any) -> Damage:
    return replaced(lambda array: raw_npy(text, array.tobytes(), **options))


def compressed(method: int) -> Damage:
    return lambda rng, path: write(path, members(path), method)


def patched(offset_local: int, offset_central: int, form: str, *values: int) -> Damage:
    """Overwrite a field of every local and central header."""

    def damage(rng: Random, path: Path) -> None:
        content, value = bytearray(path.read_bytes()), rng.choice(values)
        with zipfile.ZipFile(path) as archive:
            starts = [member.header_offset for member in archive.infolist()]
            central = archive.start_dir
        for start in starts:
            struct.pack_into(form, content, start + offset_local, value)
        for _ in starts:
            name, extra, comment = struct.unpack_from("<HHH", content, central + 28)
            struct.pack_into(form, content, central + offset_central, value)
            central += 46 + name + extra + comment
        path.write_bytes(content)

    return damage


@lru_cache
def _zeros() -> bytes:
    """Compress one block of zeros that may be repeated in a stream."""
    compress = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compress.compress(b"\0" * ZEROS) + compress.flush(zlib.Z_FULL_FLUSH)


def bomb(size: int, shape: Callable[[int], str]) -> Damage:
    """Let a small member expand to `size` bytes of zeros that its header may or may not announce."""

    def damage(rng: Random, path: Path) -> None:
        contents = members(path)
        contents.pop(f"{VICTIM}.npy")
        head = raw_npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape(size // 4)}}}".ljust(117) + "\n")
        count = (size + ZEROS - 1) // ZEROS
        compress = zlib.compressobj(9, zlib.DEFLATED, -15)
        stream = compress.compress(head) + compress.flush(zlib.Z_FULL_FLUSH) + _zeros() * count
        stream += zlib.compressobj(9, zlib.DEFLATED, -15).flush()
        total = len(head) + count * ZEROS
        name = f"{VICTIM}.npy".encode()
        with zipfile.ZipFile(path, "w") as archive:
            for other, content in contents.items():
                archive.writestr(other, content)
            directory = archive.start_dir
        tail = path.read_bytes()[directory:]
        fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(stream), total % 2**32, len(name), 0)
        local = b"PK\3\4" + fields + name + stream
        entry = b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, directory) + name
        central = tail[: tail.rindex(b"PK\5\6")] + entry
        end = struct.pack(
            "<HHHHIIH", 0, 0, len(contents) + 1, len(contents) + 1, len(central), directory + len(local), 0
        )
        path.write_bytes(path.read_bytes()[:directory] + local + central + b"PK\5\6" + end)

    return damage


def twice(rng: Random, path: Path) -> None:
    import warnings

    contents = members(path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(f"{VICTIM}.npy", contents[f"{VICTIM}.npy"])


def added(name: str, content: bytes = b"") -> Damage:
    def damage(rng: Random, path: Path) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content)

    return damage


class _Call:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def _many(rng: Random, path: Path) -> None:
    content = npy(np.zeros((), np.float32))
    write(path, {f"t{i}.npy": content for i in range(3_000)})


FORMS: dict[str, Damage] = {
    "encrypted": patched(6, 8, "<H", 1, 0x41),
    "another compression": patched(8, 10, "<H", 1, 9, 12, 14, 93, 95, 99, 65535),
    "flags": patched(6, 8, "<H", 0x20, 0x40, 0x800, 0x2000, 0xFFFF),
    "compressed size": patched(18, 20, "<I", *(n % 2**32 for n in NUMBERS)),
    "uncompressed size": patched(22, 24, "<I", *(n % 2**32 for n in NUMBERS)),
    "checksum": patched(14, 16, "<I", 0, 2**32 - 1),
    "length of names": patched(26, 28, "<H", 0, 1, 65535),
    "length of extra fields": patched(28, 30, "<H", 1, 4, 65535),
    "version needed": patched(4, 6, "<H", 63, 100, 65535),
    "offset of members": patched(0, 42, "<I", 0, 1, 2**31, 2**32 - 1),
    "bzip2": compressed(zipfile.ZIP_BZIP2),
    "lzma": compressed(zipfile.ZIP_LZMA),
    "deflated": compressed(zipfile.ZIP_DEFLATED),
    "strings": replaced(lambda array: npy(array.astype("U10"))),
    "bytes": replaced(lambda array: npy(array.astype("S10"))),
    "empty strings": replaced(lambda array: npy(np.zeros((2, 3), "S"))),
    "objects": replaced(lambda array: npy(array.astype(object))),
    "pickled code": replaced(lambda array: npy(np.array([_Call()]))),
    "structured": replaced(lambda array: npy(np.zeros(array.shape, [("a", "<f4"), ("b", "<i2", (3,))]))),
    "dates": replaced(lambda array: npy(array.astype(np.int64).view("datetime64[s]"))),
    "durations": replaced(lambda array: npy(array.astype(np.int64).view("timedelta64[s]"))),
    "void": replaced(lambda array: npy(np.zeros(array.shape, "V3"))),
    "like bfloat16": replaced(lambda array: npy(np.zeros(array.shape, "V2"))),
    "complex": replaced(lambda array: npy(array.astype(np.complex64))),
    "booleans": replaced(lambda array: npy(array.astype(bool))),
    "long doubles": replaced(lambda array: npy(array.astype(np.longdouble))),
    "Fortran order": replaced(lambda array: npy(np.asfortranarray(array))),
    "big endian": replaced(lambda array: npy(array.astype(array.dtype.newbyteorder(">")))),
    "one number": replaced(lambda array: npy(np.float32(1.0))),
    "no numbers": replaced(lambda array: npy(np.zeros((0, 2**40), np.float32))),
    "version 2": replaced(lambda array: npy(array, (2, 0))),
    "version 3": replaced(lambda array: npy(array, (3, 0))),
    "version 9": header_text("{}", version=(9, 9)),
    "not npy": replaced(lambda array: b"text"),
    "nothing": replaced(lambda array: b""),
    "pickle": replaced(lambda array: pickle.dumps(_Call())),
    "more data": replaced(lambda array: npy(array) + b"\0" * 100),
    "less data": replaced(lambda array: npy(array)[:-4]),
    "shape of 10^10": lying("(10000000000,)"),
    "shape of 2^63": lying("(9223372036854775808,)"),
    "shape of 10^30": lying(f"({10**30},)"),
    "shape that wraps around": lying("(4294967296, 4294967296)"),
    "shape of 2^62, 0": lying("(4611686018427387904, 0)"),
    "negative shape": lying("(-1, -4)", data=b"\0" * 16),
    "boolean shape": lying("(True, True, 4)", data=b"\0" * 16),
    "shape of 70 dimensions": lying(f"({'1,' * 70})", data=b"\0" * 4),
    "huge items": lying("(1,)", "|S2147483647"),
    "items of no bytes": lying("(1000000000000,)", "|V0"),
    "subarray dtype": lying("(1,)", "(1000,1000,1000)f4"),
    "unknown dtype": lying("(1,)", "<q9"),
    "long dtype": lying("(1,)", "x" * 9000),
    "header is a list": header_text("[1, 2]\n"),
    "header is code": header_text("print('code ran')\n"),
    "header without shape": header_text("{'descr': '<f4', 'fortran_order': False}\n"),
    "header of nested lists": header_text("[" * 4000 + "]" * 4000 + "\n"),
    "header of open brackets": header_text("(" * 9000 + "\n"),
    "header of signs": header_text("-" * 9000 + "1\n"),
    "header of a large number": header_text("1" * 9000 + "\n"),
    "header of control characters": header_text("\x00\x1b[31m\n"),
    "header of 4 GB": header_text("{}", version=(2, 0), size=2**32 - 1),
    "header of 2 MB": header_text("{" + " " * 2**21 + "}", version=(2, 0)),
    "one name twice": twice,
    "folder": added("folder/"),
    "path": added("../../etc/passwd.npy"),
    "long name": added("x" * 60_000 + ".npy", npy(np.zeros(3))),
    "control characters": added("\x1b[31m\u202e.npy", npy(np.zeros(3))),
    "text beside": added("README.txt", b"text"),
    "both names": added(VICTIM, npy(np.zeros(3))),
    "bomb of the announced shape": bomb(2**30, lambda count: f"({count},)"),
    "bomb of many rows": bomb(2**30, lambda count: f"(1, {count // 256}, 256)"),
    "bomb behind a small shape": bomb(2**30, lambda count: "(1,)"),
    "many members": _many,
    "no members": lambda rng, path: write(path, {}),
    "a comment of 64 kB": lambda rng, path: _comment(path, b"x" * 65535),
    "something in front": lambda rng, path: _prefix(path, b"#!/bin/sh\n" * 50),
}


def _comment(path: Path, comment: bytes) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment


def _prefix(path: Path, content: bytes) -> None:
    path.write_bytes(content + path.read_bytes())
