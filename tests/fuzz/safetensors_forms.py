"""Hostile safetensors files: headers that lie, sizes beyond every limit, sparse files."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutations import NUMBERS, Damage, damaged_json

Entries = dict[str, Any]


def parts(path: Path) -> tuple[Entries, bytes]:
    """Split a file into the entries of its header and its data."""
    content = path.read_bytes()
    stop = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:stop]), content[stop:]


def write(path: Path, header: str | bytes | Entries, data: bytes, size: int | None = None) -> None:
    """Write a file from parts that need not fit each other; `size` of the header as the file has it."""
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    path.write_bytes((len(raw) if size is None else size).to_bytes(8, "little") + raw + data)


def damage_header(rng: Random, path: Path) -> None:
    """Damage the header as JSON; its length fits."""
    entries, data = parts(path)
    write(path, damaged_json(rng, entries), data)


def wrong_size(rng: Random, path: Path) -> None:
    """Give the header another length."""
    entries, data = parts(path)
    write(path, entries, data, rng.choice(NUMBERS))


def entry(**changes: Any) -> Damage:
    """Change the entry of one tensor; functions get the old value, and a value of ... removes it."""

    def damage(rng: Random, path: Path) -> None:
        entries, data = parts(path)
        one = entries[rng.choice([name for name in entries if name != "__metadata__"])]
        for key, value in changes.items():
            if value is ...:
                del one[key]
            else:
                one[key] = value(one[key]) if callable(value) else value
        write(path, entries, data)

    return damage


def header(change: Callable[[Entries], Any]) -> Damage:
    """Change the whole header in place, or return its text."""

    def damage(rng: Random, path: Path) -> None:
        entries, data = parts(path)
        text = change(entries)
        write(path, text if isinstance(text, str) else entries, data)

    return damage


def sparse(*names: str, shape: tuple[int, ...]) -> Damage:
    """Add, or replace, tensors of an absurd size whose data is a hole in the file."""

    def damage(rng: Random, path: Path) -> None:
        entries, data = parts(path)
        for name in names:
            entries.pop(name, None)
        entries, end = packed(entries), 0
        data = b"".join(data[start:stop] for start, stop in offsets(parts(path)[0], entries))
        end = len(data)
        count = 1
        for size in shape:
            count *= size
        for name in names:
            entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * count]}
            end += 4 * count
        write(path, entries, data)
        os.truncate(path, path.stat().st_size - len(data) + end)

    return damage


def offsets(old: Entries, names: Entries) -> list[tuple[int, int]]:
    return [tuple(old[name]["data_offsets"]) for name in names if name != "__metadata__"]


def packed(entries: Entries) -> Entries:
    """Move the data of the tensors together."""
    found, end = {}, 0
    for name, one in entries.items():
        if name == "__metadata__":
            found[name] = one
            continue
        start, stop = one["data_offsets"]
        found[name] = one | {"data_offsets": [end, end + stop - start]}
        end += stop - start
    return found


def rename(new: str) -> Damage:
    def damage(rng: Random, path: Path) -> None:
        entries, data = parts(path)
        old = rng.choice([name for name in entries if name != "__metadata__"])
        write(path, {new if name == old else name: one for name, one in entries.items()}, data)

    return damage


def twice(entries: Entries) -> str:
    text, name = json.dumps(entries), next(name for name in entries if name != "__metadata__")
    return text[:-1] + f", {json.dumps(name)}: {json.dumps(entries[name])}}}"


def many(entries: Entries) -> None:
    entries.update({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)})


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
FORMS: dict[str, Damage] = {
    "header": damage_header,
    "length of the header": wrong_size,
    "header of 100 MB": header(lambda entries: json.dumps(entries) + " " * 10**8),
    "header of 16 MB of tensors": header(many),
    "overlapping": entry(data_offsets=lambda old: [old[0] + 4, old[1] + 4]),
    "out of range": entry(data_offsets=lambda old: [10**9, 10**9 + old[1] - old[0]]),
    "reversed": entry(data_offsets=lambda old: old[::-1]),
    "negative offsets": entry(data_offsets=lambda old: [-old[1], -old[0]]),
    "offsets of 2^63": entry(data_offsets=[2**63, 2**63 + 4]),
    "offsets of 2^64": entry(data_offsets=[0, 2**64]),
    "fractional offsets": entry(data_offsets=lambda old: [float(x) for x in old]),
    "boolean offsets": entry(data_offsets=[False, True]),
    "three offsets": entry(data_offsets=lambda old: [*old, old[1]]),
    "no offsets": entry(data_offsets=...),
    "no shape": entry(shape=...),
    "shape is a number": entry(shape=4),
    "shape of 2^63": entry(shape=[2**63]),
    "shape of 2^63, 0": entry(shape=[2**63, 0], data_offsets=lambda old: [old[0], old[0]]),
    "shape of 10^30": entry(shape=[10**30]),
    "shape of products beyond 2^64": entry(shape=[2**33, 2**33]),
    "shape that wraps around": entry(shape=[2**32, 2**32, 4]),
    "negative shape": entry(shape=[-1]),
    "zero shape": entry(shape=[0], data_offsets=lambda old: [old[0], old[0]]),
    "fractional shape": entry(shape=[4.0]),
    "shape of 70 dimensions": entry(shape=lambda old: [1] * 70 + old),
    "nested shape": entry(shape=[[4]]),
    "unknown dtype": entry(dtype="F128"),
    "small dtype": entry(dtype="F8_E4M3"),
    "dtype of four bits": entry(dtype="F4"),
    "integer dtype": entry(dtype="I32"),
    "dtype is a list": entry(dtype=["F32"]),
    "dtype is null": entry(dtype=None),
    "long dtype": entry(dtype="F" * 5000),
    "long name": rename("x" * 5000),
    "control characters in a name": rename("\x1b[31m\n\u202e\x00"),
    "empty name": rename(""),
    "metadata as a name": rename("__metadata__"),
    "two prefixes": rename("model.model.shared.weight"),
    "one name twice": header(twice),
    "metadata is null": header(lambda entries: entries.update(__metadata__=None)),
    "metadata is a list": header(lambda entries: entries.update(__metadata__=[["a", "b"]])),
    "metadata of numbers": header(lambda entries: entries.update(__metadata__={"format": 1, "weights_id": 10**400})),
    "metadata is nested": header(lambda entries: entries.update(__metadata__={"weights_id": {"a": ["b"]}})),
    "metadata of control characters": header(lambda e: e.update(__metadata__={"weights_id": "\x1b[31m" * 400})),
    "not misaligned by spaces": header(lambda entries: json.dumps(entries) + "   "),
    "header starts with a space": header(lambda entries: " " + json.dumps(entries)),
    "trailing comma": header(lambda entries: json.dumps(entries)[:-1] + ",}"),
    "nested deeply": header(lambda entries: json.dumps(entries)[:-1] + ', "a": ' + "[" * 9_000 + "]" * 9_000 + "}"),
    "lone surrogate": header(lambda entries: json.dumps(entries)[:-1] + ', "\\ud800": {}}'),
    "trailing data": lambda rng, path: append(path, b"\0" * rng.choice((1, 4, 4096))),
    "sparse table": sparse("model.shared.weight", shape=(2**28, 4)),
    "sparse copies": sparse("model.shared.weight", *(f"model.{n}" for n in COPIES[:2]), shape=(2**27, 4)),
    "sparse unread tensor": sparse("model.encoder.embed_positions.weight", shape=(2**27,)),
}


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)
