"""Random damage to files of any format: bytes, entries of JSON and TOML, special files in a file's place."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Damage = Callable[[Random, Path], None]  # damages a file in place

NUMBERS = (0, 1, 2, 8, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
# Each is JSON, or nearly so, in the place of any value.
NASTY_JSON = (
    *("null", "true", "false", "-1", "0", "1", "2", "1.0", "0.5", "-0.0", '""', "[]", "{}", "[null]", '{"": 1}'),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "-9223372036854775809", str(10**30)),
    *(str(10**400), "1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e-320", "1e308", "1e-45"),
    *('"x"', '"1"', json.dumps("x" * 5000), r'"\u0000\u001b[31m\n\u0085"', r'"\ud800"', r'"\u202e\u2066"', '"../x"'),
    *("[1, 2]", "[[1], [2]]", '["a", "b"]', '[{"a": []}]', "[1e400]", "[true, 1]", "[1, 1, 1, 1, 1, 1, 1, 1]"),
    *("[" * depth + "]" * depth for depth in (10, 60, 65, 500, 1_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (60, 1_000)),
    *("[" * 100_000 + "]" * 100_000, "[" * 100_000, json.dumps(list(range(20_000)))),
    *("float32", "", "'x'", "[1,]", "01", "+1", "1.", "\u00a0", "-", '"\n"', '"\\x"'),
)
NASTY_TOML = (
    *("true", "-1", "0", "1.5", "nan", "inf", "-inf", "1e999", str(2**63), str(10**400), "1979-05-27T07:32:00Z"),
    *('""', '"x"', '"{i}"', '"{n}"', '"{0}"', '"{i.__class__}"', '"(a+)+$"', f'"{"x" * 5000}"', r'"\u001b[31m\u0000"'),
    *("[]", "[1, 2]", "[-1, 4]", "[0]", f"[{2**62}, 4]", f"[{2**64}]", "[1.5]", '["a"]', "[true]", "[[1]]"),
    *(f"[{', '.join('1' * 70)}]", "[" * 500 + "]" * 500, "[" * 50_000, "{}", "{a = 1}", "{name = 1}"),
    *('{name = "lm_head"}', '{name = "lm_head", reshape = 1}', '{name = "lm_head", transpose = [0, 0, 0]}'),
    *('{"0" = [0, 1]}', '{1 = "T"}', "{-1 = [-99, 99]}", '"T"', '["B", -1, "K", "H", "F"]', '["lm_head", "x"]'),
    *('{name = "lm_head", reshape = "x"}', f'{{name = "lm_head", reshape = [{2**70}]}}', "'''", "\\", "\x00", "\ufeff"),
)


def damage_bytes(rng: Random, path: Path) -> None:
    """Flip, cut, insert, repeat or swap bytes, or replace some by a number of a file format."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        size = len(content)
        start, length = rng.randrange(size + 1), min(rng.choice((1, 2, 4, 8, 100, 5000)), size)
        other = rng.randrange(size + 1)
        kind = rng.randrange(7)
        if kind == 0 and size:
            content[start % size] = rng.randrange(256)
        elif kind == 1 and size:
            content[start % size] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del content[start:]
        elif kind == 3:
            content[start:start] = rng.choice((rng.randbytes(length), b"\0" * length, b"\xff" * length))
        elif kind == 4:
            content[other:other] = content[start : start + length]
        elif kind == 5:
            del content[start : start + length]
        else:
            number = rng.choice(NUMBERS) + rng.choice((0, 0, -1, 1))
            width = rng.choice((1, 2, 4, 8))
            content[start : start + width] = (number % 256**width).to_bytes(width, rng.choice(("little", "big")))
    path.write_bytes(content)


def damaged_json(rng: Random, values: Any) -> str:
    """Return JSON text with some entries removed, replaced, added or repeated."""
    values = json.loads(json.dumps(values))
    fragments: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder = values
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            key = rng.choice(list(keys)) if keys else None
            if key is None or not isinstance(holder[key], dict | list) or rng.random() < 0.3:
                break
            holder = holder[key]
        fragment, kind = f"@@{len(fragments)}@@", rng.randrange(8)
        fragments.append(rng.choice(NASTY_JSON))
        if key is None or kind == 0:
            name = rng.choice(("", "x", "x" * 5000, "\x1b[31m", "\u202e", "__metadata__", "extra", "self", "a.b", "0"))
            holder.update({name: fragment}) if isinstance(holder, dict) else holder.append(fragment)
        elif kind == 1:
            del holder[key]
        elif kind == 2 and isinstance(holder, dict):
            other = rng.choice(("x", key + key, key.upper(), rng.choice(list(holder))))
            holder[other] = holder.pop(key)
        elif kind == 3:
            other = rng.choice(list(keys))
            holder[key], holder[other] = holder[other], holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[key + "@twice@"] = fragment
        elif kind == 5 and isinstance(holder[key], int):
            holder[key] = rng.choice((holder[key] * 2, holder[key] + 1, -holder[key], holder[key] * 10**6))
        else:
            holder[key] = fragment
    text = json.dumps(values)
    for i, fragment in enumerate(fragments):
        text = text.replace(f'"@@{i}@@"', fragment)
    text = text.replace("@twice@", "")
    if rng.random() < 0.05:
        text = rng.choice((*NASTY_JSON, "\ufeff" + text, text + text, text[1:], text.replace(" ", "\0")))
    return text


def damage_json(rng: Random, path: Path) -> None:
    """Damage the entries of a JSON file."""
    path.write_text(damaged_json(rng, json.loads(path.read_text("utf-8"))), "utf-8", errors="surrogatepass")


def damage_toml(rng: Random, path: Path) -> None:
    """Damage lines ``key = value`` of a TOML file."""
    lines = path.read_text("utf-8").splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        i, kind = rng.randrange(len(lines)), rng.randrange(4)
        key, _, value = lines[i].partition(" = ")
        nasty = rng.choice(NASTY_TOML)
        if kind == 0:
            lines[i] = f"{key} = {nasty}"
        elif kind == 1:
            quoted = json.dumps(rng.choice(("", "{i}", "lm_head", "x" * 5000, "\x1b", "encoder.layers.{i}.fc1", "{")))
            lines[i] = f"{rng.choice((nasty, quoted))} = {value}"
        elif kind == 2:
            lines.insert(i, rng.choice((nasty, lines[i], "[table]", "[[table]]", "[lm_head]", "a.b.c = 1")))
        else:
            lines[i] = lines[i].replace(rng.choice(("{i}", "{n}", '"', "[", "=", ".")), rng.choice(("", "{i}", "1")))
    path.write_text("\n".join(lines), "utf-8", errors="surrogatepass")


def replace_specially(rng: Random, path: Path) -> None:
    """Put something else than a regular, readable file into a file's place."""
    kind = rng.choice(tuple(SPECIAL))
    path.unlink()
    SPECIAL[kind](path)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**33)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix_socket:
        unix_socket.bind(f"/proc/self/fd/{(folder := os.open(path.parent, os.O_RDONLY))}/{path.name}")
        os.close(folder)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**33)


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: None,
    "empty": lambda path: path.touch(),
    "unreadable": lambda path: path.touch(0o000),
    "folder": lambda path: path.mkdir(),
    "FIFO": lambda path: os.mkfifo(path),
    "socket": _bind,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to("/dev/null"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "dangling link": lambda path: path.symlink_to("missing"),
    "link loop": lambda path: path.symlink_to(path.name),
    "link to the folder": lambda path: path.symlink_to("."),
    "file as folder": lambda path: path.symlink_to("config.json/x"),
    "process memory": lambda path: path.symlink_to("/proc/self/mem"),
    "endless file": lambda path: path.symlink_to("/proc/kmsg"),
    "sparse": sparse,
}
