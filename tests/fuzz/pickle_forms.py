"""Hostile files of torch.save: other objects, other tensors, pickles that call and pickles that hang."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz.mutations import NUMBERS, Damage

State = dict[Any, Any]


def load(path: Path) -> State:
    return dict(torch.load(path, weights_only=True))


def save(path: Path, entries: Any) -> None:
    """Save in the format that the file has."""
    torch.save(entries, path, _use_new_zipfile_serialization=zipfile.is_zipfile(path))


def some(rng: Random, entries: State) -> str:
    return rng.choice([name for name in entries if entries[name].ndim == 2])  # type: ignore[no-any-return]


def tensor(change: Callable[[torch.Tensor], Any]) -> Damage:
    """Replace one tensor."""

    def damage(rng: Random, path: Path) -> None:
        entries = load(path)
        name = some(rng, entries)
        save(path, entries | {name: change(entries[name])})

    return damage


def whole(change: Callable[[State], Any]) -> Damage:
    """Save another object."""
    return lambda rng, path: save(path, change(load(path)))


def stream(make: Callable[[bytes], bytes]) -> Damage:
    """Replace the pickle in the file."""

    def damage(rng: Random, path: Path) -> None:
        if not zipfile.is_zipfile(path):
            head = io.BytesIO()
            for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "type_sizes": {}}):
                pickle.dump(value, head, 2)
            keys = io.BytesIO()
            pickle.dump([], keys, 2)
            path.write_bytes(head.getvalue() + make(b"") + keys.getvalue())
            return
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, make(content) if name.endswith("data.pkl") else content)

    return damage


def called(module: str, name: str, *arguments: Any) -> Damage:
    """Call a function for the value of the dictionary's only key."""
    values = pickle.dumps(arguments, 2)[2:-1]
    return stream(lambda _: b"\x80\x02}X\x01\x00\x00\x00ac" + f"{module}\n{name}\n".encode() + values + b"Rs.")


def member(name: str, content: bytes) -> Damage:
    """Add a record to the archive."""

    def damage(rng: Random, path: Path) -> None:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{name}", content)

    return damage


def damage_pickle(rng: Random, path: Path) -> None:
    """Damage bytes of the pickle, whose checksum fits again."""

    def change(content: bytes) -> bytes:
        found = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            i, kind = rng.randrange(len(found)), rng.randrange(4)
            if kind == 0:
                found[i] = rng.randrange(256)
            elif kind == 1:
                found[i] = rng.choice(b"}](tl)\x85\x86\x87sRubQq0.NU\x8a2h\x81caeX")
            elif kind == 2:
                del found[i : i + rng.choice((1, 4, 30))]
            else:
                found[i : i + 4] = (rng.choice(NUMBERS) % 2**32).to_bytes(4, "little")
        return bytes(found)

    if zipfile.is_zipfile(path):
        stream(change)(rng, path)
    else:
        path.write_bytes(change(path.read_bytes()))


def written(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def rebuilt(offset: Any, size: Any, stride: Any, numel: Any = 16, key: str = "0", name: str = "w") -> Damage:
    """Describe a tensor by numbers that its data does not have."""
    persistent = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + b"".join(
        pickle.dumps(value, 2)[2:-1] for value in (key, "cpu", numel)
    )
    fields = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride))
    return stream(
        lambda _: (
            b"\x80\x02}" + pickle.dumps(name, 2)[2:-1] + b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent
            + b"tQ" + fields + b"\x89ccollections\nOrderedDict\n)RtRs."
        )
    )  # fmt: skip


def _nested_keys(levels: int) -> bytes:
    """Build a tuple that holds the one before it twice, as a key: its hash takes 2**levels steps."""
    pieces = [b"\x80\x02})q\x00"]
    for i in range(levels):
        pieces.append(b"h" + bytes([i % 200]) + b"h" + bytes([i % 200]) + b"\x86q" + bytes([(i + 1) % 200]))
    return b"".join(pieces) + b"Ns."


def _nested() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def _text(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


_BIG = torch.zeros(1)
FORMS: dict[str, Damage] = {
    "pickle": damage_pickle,
    "expanded": tensor(lambda old: _BIG.expand(5_000_000_000)),
    "expanded to the shape": tensor(lambda old: _BIG.expand(*old.shape)),
    "expanded to rows": tensor(lambda old: _BIG.expand(2**40, 4)),
    "expanded to nothing": tensor(lambda old: _BIG.expand(0, 1)),
    "meta": tensor(lambda old: torch.empty(old.shape, device="meta")),
    "huge meta": tensor(lambda old: torch.empty(2**40, 4, device="meta")),
    "sparse": tensor(lambda old: old.to_sparse()),
    "huge sparse": tensor(lambda old: torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (2**31, 2**31))),
    "compressed rows": tensor(lambda old: old.to_sparse_csr()),
    "quantized": tensor(lambda old: torch.quantize_per_tensor(old, 0.1, 0, torch.qint8)),
    "nested": tensor(lambda old: _nested()),
    "complex": tensor(lambda old: old.to(torch.complex64)),
    "conjugate": tensor(lambda old: old.to(torch.complex64).conj()),
    "negated view": tensor(lambda old: torch.view_as_complex(torch.zeros(*old.shape, 2)).conj().imag),
    "integers": tensor(lambda old: old.to(torch.int32)),
    "booleans": tensor(lambda old: old > 0),
    "8-bit floats": tensor(lambda old: old.to(torch.float8_e4m3fn)),
    "parameter": tensor(torch.nn.Parameter),
    "transposed": tensor(lambda old: old.T.contiguous().T),
    "sliced": tensor(lambda old: torch.zeros(old.shape[0] * 2, old.shape[1])[::2]),
    "overlapping": tensor(lambda old: torch.zeros(100).as_strided(old.shape, (1, 1))),
    "other shape": tensor(lambda old: old.reshape(-1)),
    "one number": tensor(lambda old: torch.tensor(1.0)),
    "number": tensor(lambda old: 1.0),
    "text": tensor(lambda old: "x" * 5000),
    "none": tensor(lambda old: None),
    "storage": tensor(lambda old: old.untyped_storage()),
    "dictionary": tensor(lambda old: {"a": old}),
    "shared storages": whole(lambda entries: dict.fromkeys(entries, torch.zeros(4, 4))),
    "a list": whole(lambda entries: list(entries.values())),
    "a tensor": whole(lambda entries: torch.zeros(3)),
    "a number": whole(lambda entries: 1),
    "a layer": whole(lambda entries: torch.nn.Linear(2, 2)),
    "nothing in it": whole(lambda entries: {}),
    "numbers as names": whole(lambda entries: dict(enumerate(entries.values()))),
    "tuples as names": whole(lambda entries: {(name,): value for name, value in entries.items()}),
    "long name": whole(lambda entries: entries | {"x" * 5000: _BIG}),
    "control characters": whole(lambda entries: entries | {"\x1b[31m\n\u202e": _BIG}),
    "nested dictionary": whole(lambda entries: {"state_dict": entries}),
    "bytearray": called("builtins", "bytearray", 10**10),
    "bytes": called("__builtin__", "bytes", 10**10),
    "encode": called("_codecs", "encode", "x" * 1000, "utf-8"),
    "counter": called("collections", "Counter", "x" * 1000),
    "ordered": called("collections", "OrderedDict", [["a", 1]]),
    "float tensor": called("torch", "FloatTensor", 10**10),
    "tensor": called("torch", "Tensor", 10**10),
    "storage of 10^10": called("torch", "FloatStorage", 10**10),
    "storage of 10^10 bytes": called("torch", "UntypedStorage", 10**10),
    "storage of 10^10 bytes too": called("torch.storage", "UntypedStorage", 10**10),
    "typed storage": called("torch.storage", "TypedStorage", 10**10),
    "size": called("torch", "Size", list(range(1000))),
    "device": called("torch", "device", "cuda:99"),
    "shell": called("os", "system", "echo code ran"),
    "posix shell": called("posix", "system", "echo code ran"),
    "evaluation": called("builtins", "eval", "print('code ran')"),
    "range": called("builtins", "set", list(range(1000))),
    "empty tensor": called("torch._utils", "_rebuild_meta_tensor_no_storage", None, (2**40,), (1,), False),
    "sparse by numbers": called("torch._utils", "_rebuild_sparse_tensor", None, (None, None, (2**40,))),
    "wrapped": called("torch._utils", "_rebuild_wrapper_subclass", 1, 2, 3, 4, 5, 6, 7, 8),
    "parameter of a list": called("torch._utils", "_rebuild_parameter", [1], True, {}),
    "names of 2^levels steps": stream(lambda _: _nested_keys(60)),
    "names of 2^levels steps, short": stream(lambda _: _nested_keys(22)),
    "deep tuples as a name": stream(lambda _: b"\x80\x02})" + b"\x85" * 3_000_000 + b"Ns."),
    "deep tuples": stream(lambda _: b"\x80\x02}X\x01\x00\x00\x00a)" + b"\x85" * 3_000_000 + b"s."),
    "deep lists": stream(lambda _: b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"s."),
    "deep marks": stream(lambda _: b"\x80\x02}" + b"(" * 10**6 + b"."),
    "endless marks": stream(lambda _: b"\x80\x02" + b"(" * (2**24 + 100)),
    "list in itself": stream(lambda _: b"\x80\x02}X\x01\x00\x00\x00a]q\x00h\x00as."),
    "dictionary in itself": stream(lambda _: b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."),
    "shared lists": stream(
        lambda _: (
            b"\x80\x02}X\x01\x00\x00\x00a]q\x00"
            + b"".join(b"]h%ch%ceq%c" % (i, i, i + 1) for i in range(1, 60)).replace(b"]h", b"](h")
            + b"s."
        )
    ),
    "text of 4 GB": stream(lambda _: b"\x80\x02}X\xff\xff\xff\xffab"),
    "long of 4 GB": stream(lambda _: b"\x80\x02}\x8b\xff\xff\xff\x7fab"),
    "surrogate as a name": stream(lambda _: b"\x80\x02}" + _text(b"\xed\xa0\x80") + b"Ns."),
    "memo of 2^32": stream(lambda _: b"\x80\x02}r\xff\xff\xff\xff."),
    "pop": stream(lambda _: b"\x80\x020000."),
    "newer protocol": stream(lambda content: pickle.dumps({"a": [1]}, 4)),
    "protocol 0": stream(lambda content: pickle.dumps({"a": [1.5]}, 0)),
    "protocol 255": stream(lambda content: b"\x80\xff}."),
    "stack global": stream(lambda content: b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R."),
    "instance": stream(lambda content: b"(S'echo code ran'\nios\nsystem\n."),
    "build": stream(lambda content: b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb."),
    "build a tensor": stream(lambda _: b"\x80\x02ctorch\nFloatTensor\n)R(NNNtb."),
    "no tensor": rebuilt(0, (2, 2), (2, 1), key="missing"),
    "negative size": rebuilt(0, (-2, 2), (2, 1)),
    "negative stride": rebuilt(3, (2, 2), (-2, -1)),
    "negative offset": rebuilt(-1, (2, 2), (2, 1)),
    "size beyond the data": rebuilt(0, (10**6, 10**6), (1, 1)),
    "expanded by strides": rebuilt(0, (2**30, 4), (0, 0), name="shared.weight"),
    "size of 2^63": rebuilt(0, (2**63, 1), (1, 1)),
    "stride of 2^62": rebuilt(0, (2, 2), (2**62, 2**62)),
    "offset of 2^62": rebuilt(2**62, (1, 1), (1, 1)),
    "size of nothing": rebuilt(0, (2**62, 0), (1, 1)),
    "fractional size": rebuilt(0, (2.5, 1), (1, 1)),
    "storage of 2^40": rebuilt(0, (4, 4), (4, 1), numel=2**40),
    "storage of its neighbour": rebuilt(0, (20, 2), (2, 1), numel=1000, name="shared.weight"),
    "line of 40 MB": stream(lambda _: b"\x80\x02c" + b"x" * (40 * 2**20)),
    "bytes of 2^40": stream(lambda _: b"\x80\x02\x8e" + (2**40).to_bytes(8, "little")),
    "storage of -1": rebuilt(0, (4, 4), (4, 1), numel=-1),
    "storage of 2^70": rebuilt(0, (4, 4), (4, 1), numel=2**70),
    "storage of a text": rebuilt(0, (4, 4), (4, 1), numel="x"),
    "70 dimensions": rebuilt(0, (1,) * 70, (1,) * 70),
    "big endian": member("byteorder", b"big"),
    "unknown byte order": member("byteorder", b"middle"),
    "script": member("constants.pkl", b"\x80\x02}."),
    "second pickle": member("x/data.pkl", b"\x80\x02cos\nsystem\n."),
    "older archive": lambda rng, path: written(path, b"ustar\0" * 100),
    "one pickle": lambda rng, path: written(path, pickle.dumps({"a": 1}, 2)),
    "deflated": lambda rng, path: _deflated(path),
}


def _content(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _deflated(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
