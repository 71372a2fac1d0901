"""Hostile msgpack files: arrays that lie, chunks that do not fit, sizes beyond the file, deep and many values."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgpack
from fuzz.mutations import Damage

Tree = dict[str, Any]
SHAPES: Any = (
    [],
    [0],
    [-1],
    [2**63],
    [2**32, 2**32],
    [4.0],
    ["4"],
    [True],
    [None],
    [[4]],
    [1] * 9,
    [1] * 5000,
    4,
    "44",
    None,
    {"0": 4},
    [2**62, 4],
    [2**64 - 1],
    [4, 4],
    [3, 4],
    [4, 1, 4],
    [130, 4],
    [1, 4],
)
NAMES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int8",
    "object",
    "O",
    "V4",
    "complex64",
    "<f4",
    "float8_e4m3fn",
    "",
    "x" * 5000,
    b"float32",
    1,
    None,
    "\x1b[31m",
    "str",
    "datetime64[s]",
)
KEYS: Any = (
    "",
    "/",
    "a/b",
    "x" * 600,
    "\x1b[31m\n",
    "\u202e",
    "0",
    "kernel",
    "embedding",
    "../x",
    "encoder",
    b"kernel",
    1,
    None,
    1.5,
    True,
    "__msgpack_chunked_array__",
    "encoderblock_1",
    "encoderblock_999999999",
    "params",
    "é",
)
LEAVES: Any = (
    None,
    True,
    1,
    1.5,
    "x",
    b"x",
    [],
    {},
    [1] * 1000,
    2**64 - 1,
    -(2**63),
    [[[]]],
    {"": {}},
    "x" * 70_000,
    b"x" * 100_000,
)


def leaves(tree: Tree) -> list[tuple[Tree, str]]:
    """List every array of a tree, as the dictionary that holds it and its key there."""
    found: list[tuple[Tree, str]] = []
    for key, value in tree.items():
        found += leaves(value) if isinstance(value, dict) and "shape" not in value else [(tree, key)]
    return found


def damage_tree(rng: Random, path: Path) -> None:
    """Change arrays and names."""
    tree = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = leaves(tree)
        if not places:
            break
        holder, key = rng.choice(places)
        leaf, kind = holder[key], rng.randrange(10)
        if kind == 0:
            holder[rng.choice(KEYS)] = holder.pop(key)
        elif kind == 1:
            holder[rng.choice(KEYS)] = rng.choice((*LEAVES, leaf))
        elif kind == 2:
            holder[key] = rng.choice(LEAVES)
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(leaf, msgpack.ExtType):
            holder[key] = msgpack.ExtType(
                rng.choice((0, 1, 2, 3, 127)), rng.choice((leaf.data, b"", b"\xc1", leaf.data[:-1]))
            )
        elif kind == 5 and isinstance(leaf, dict):
            damage_chunks(rng, leaf)
        elif isinstance(leaf, msgpack.ExtType) and leaf.code == 1:
            damage_array(rng, holder, key)
    path.write_bytes(msgpack.packb(tree))


def damage_array(rng: Random, holder: Tree, key: str) -> None:
    try:
        shape, _dtype, data = parts = list(msgpack.unpackb(holder[key].data))
    except (ValueError, TypeError, msgpack.UnpackException):
        return
    kind = rng.randrange(8)
    if kind == 0:
        parts[0] = rng.choice(SHAPES)
    elif kind == 1:
        parts[1] = rng.choice(NAMES)
    elif kind == 2:
        parts[2] = rng.choice((data[:-1], data + b"x", b"", data * 2, "x", None, list(data)))
    elif kind == 3:
        parts[0] = shape[::-1] if isinstance(shape, list) else shape
    elif kind == 4:
        parts = parts[: rng.choice((0, 1, 2))] or [[]]
    elif kind == 5:
        parts.append(1)
    elif kind == 6:
        parts[2] = rng.randbytes(len(data))
    else:
        parts = [[len(data)], "int8", data]
    holder[key] = msgpack.ExtType(1, msgpack.packb(parts))


def damage_chunks(rng: Random, leaf: Tree) -> None:
    kind, part = rng.randrange(7), rng.choice(("shape", "chunks"))
    if kind == 0:
        leaf[part] = rng.choice((*LEAVES, {"0": 1}, {"1": 4, "0": 4}, {str(i): 1 for i in range(1000)}))
    elif kind == 1:
        leaf.pop(rng.choice(list(leaf)))
    elif kind == 2 and isinstance(leaf.get("shape"), dict):
        leaf["shape"] = {str(i): x for i, x in enumerate(rng.choice((SHAPES[3], SHAPES[4], SHAPES[1], [-1], [2, 2])))}
    elif kind == 3 and isinstance(leaf.get("chunks"), dict) and leaf["chunks"]:
        name = rng.choice(list(leaf["chunks"]))
        leaf["chunks"][rng.choice(("x", "-1", "0", "999", 0))] = leaf["chunks"].pop(name)
    elif kind == 4 and isinstance(leaf.get("chunks"), dict) and leaf["chunks"]:
        leaf["chunks"][rng.choice(list(leaf["chunks"]))] = rng.choice((*LEAVES, dict(leaf)))
    elif kind == 5 and isinstance(leaf.get("chunks"), dict) and leaf["chunks"]:
        damage_array(rng, leaf["chunks"], rng.choice(list(leaf["chunks"])))
    else:
        leaf["__msgpack_chunked_array__"] = rng.choice((False, None, {}, 0))


def content(make: Callable[[bytes], bytes]) -> Damage:
    """Replace the content of a file."""

    def damage(rng: Random, path: Path) -> None:
        path.write_bytes(make(path.read_bytes()))

    return damage


def head(kind: int, size: int) -> bytes:
    """The first byte and the size of a value with a size of 32 bits."""
    return bytes([kind]) + struct.pack(">I", size)


BYTES, EXTENSION, TEXT, ARRAY, MAP = 0xC6, 0xC9, 0xDB, 0xDD, 0xDF
INNER = msgpack.packb([[4], "float32", b"x" * 16])


def wrapped(place: str) -> Damage:
    """Put the parameters below another name."""

    def damage(rng: Random, path: Path) -> None:
        tree = msgpack.unpackb(path.read_bytes())
        path.write_bytes(msgpack.packb({place: tree, "step": 1, "opt_state": {"0": {"mu": tree["encoder"]}}}))

    return damage


def twice(rng: Random, path: Path) -> None:
    """Give one module twice: nested, and by names with "/"."""
    tree = msgpack.unpackb(path.read_bytes())
    path.write_bytes(msgpack.packb(tree | {"shared_embedding/embedding": tree["shared_embedding"]["embedding"]}))


FORMS: dict[str, Damage] = {
    "tree": damage_tree,
    **{
        f"{name} of 4 GB": content(lambda _, k=kind: head(k, 2**32 - 1) + b"\1" * 1000)  # type: ignore[misc]
        for name, kind in (("bytes", BYTES), ("extension", EXTENSION), ("text", TEXT), ("array", ARRAY), ("map", MAP))
    },
    "array of the size of the file": content(lambda _: head(ARRAY, 2**24) + b"\1" * 2**24),
    "array of empty maps": content(lambda _: head(ARRAY, 2**22) + b"\x80" * 2**22),
    "map of many keys": content(lambda _: head(MAP, 2**20) + b"".join(b"\xa7%07d\1" % i for i in range(2**20))),
    "nested arrays": content(lambda _: b"\x91" * 10**6 + b"\1"),
    "nested maps": content(lambda _: b"\x81\xa1a" * 10**6 + b"\1"),
    "nested extensions": content(lambda _: b"\x81\xa1a" + _nested_extension(1000)),
    "arrays inside maps": content(lambda _: b"\x81\xa1a\x91" * 70 + b"\1"),
    "text as a whole": content(lambda _: msgpack.packb("shared_embedding/embedding")),
    "number as a whole": content(lambda _: b"\1"),
    "reserved byte": content(lambda _: b"\xc1"),
    "two values": content(lambda old: old + old),
    "end cut off": content(lambda old: old[:-1]),
    "half": content(lambda old: old[: len(old) // 2]),
    "text that is not UTF-8": content(lambda old: old.replace(b"embedding", b"embeddin\xff")),
    "key twice": content(lambda old: b"\x82\xa1a\1\xa1a\1"),
    "keys of numbers": content(lambda old: b"\x81\1\1"),
    "timestamp": content(lambda old: b"\x81\xa1a\xd6\xff\0\0\0\0"),
    "safetensors": content(lambda old: struct.pack("<Q", 2) + b"{}"),
    "JSON": content(lambda old: json.dumps({"a": 1}).encode()),
    "pickle": content(lambda old: b"\x80\x02cos\nsystem\n."),
    "web page": content(lambda old: b"<!DOCTYPE html>"),
    "below target": wrapped("target"),
    "below params": wrapped("params"),
    "below another name": wrapped("x/y"),
    "two of one name": twice,
}


def _nested_extension(depth: int) -> bytes:
    value: bytes = INNER
    for _ in range(depth):
        value = head(EXTENSION, len(value)) + b"\1" + value
    return value
