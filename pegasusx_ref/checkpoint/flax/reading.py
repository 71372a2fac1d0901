"""Checkpoints of the paper's own code: the arrays in a file of flax.serialization."""

import mmap
import os
import re
import warnings
from collections.abc import Iterator
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.checkpoint.file_names import ADAPTER
from pegasusx_ref.checkpoint.flax.msgpack_values import Extension, parse_msgpack
from pegasusx_ref.checkpoint.folder import has_weights
from pegasusx_ref.checkpoint.safetensors_file import WEIGHTS
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.reading import open_regular, reading

ARRAY = 1  # the extension type of an array
CHUNKED = "__msgpack_chunked_array__"  # marks an array that was too large for one extension
DTYPES = {dtype.name: dtype for dtype in WEIGHTS.values()}
MAX_AXES = 8
MAX_NAME = 500  # characters
# Where a training program's file has the parameters, by the name of the embedding table.
TABLE = re.compile(r"((?:(?:optimizer|target|params|state|model)/)*)shared_embedding/embedding")
FILE = re.compile(r".*\.msgpack|checkpoint_\d+|.*\.ckpt")
IN_OTHER_FORMATS = re.compile(r"_METADATA|_CHECKPOINT_METADATA|manifest\.ocdbt|target\..+")  # of Orbax, of T5X
OTHER_FILES = (".safetensors", ".bin", ".json", ".model", ".h5")


def flax_file(source: Path) -> Path | None:
    """Return the file if a path is that of a Flax checkpoint: the file itself, or a folder with one.

    Args:
        source: any path.

    Raises:
        CheckpointError: a folder with several, or with one that only Orbax reads.
    """
    if source.is_file():
        return None if source.name.endswith(OTHER_FILES) else source
    if not source.is_dir() or has_weights(source) or os.path.lexists(source / ADAPTER):
        return None
    found = sorted(path for path in source.iterdir() if FILE.fullmatch(path.name))
    for folder in (source, *found):
        if folder.is_dir() and any(IN_OTHER_FORMATS.fullmatch(path.name) for path in folder.iterdir()):
            raise CheckpointError(
                f"{folder}: a checkpoint of Orbax or T5X, which only they read: restore it there, and write "
                "flax.serialization.to_bytes(params) to a file"
            )
    files = [path for path in found if path.is_file()]
    if len(files) > 1:
        raise CheckpointError(f"{source}: holds {len(files)} Flax checkpoints: pass one of them, such as {files[-1]}")
    return files[0] if files else None


def read_flax(path: Path) -> dict[str, np.ndarray]:
    """Read the parameters in a Flax checkpoint, whatever model they belong to. [spec 14.11]

    Args:
        path: a file of flax.serialization, with the parameters alone or with the state of an optimizer.

    Returns:
        Arrays by name, with "/" between the parts of a name. They are mapped into memory, not copied, except those that
        Flax wrote in chunks.

    Raises:
        CheckpointError: the file is missing or corrupt, or has no parameters of PEGASUS-X.

    Source: flax.serialization.msgpack_restore.
    """
    with reading(path, "a Flax checkpoint, as flax.serialization writes it", CheckpointError):
        with open_regular(path) as file:
            tree = parse_msgpack(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        leaves: dict[str, Any] = {}
        for name, leaf in _leaves(tree):
            if name in leaves:
                raise ValueError(f"two entries have the name {shown(name)}")
            leaves[name] = leaf
        places = [match[1] for name in leaves if (match := TABLE.fullmatch(name))]
        if len(places) != 1:
            listed = ", ".join(shown(name) for name in islice(leaves, 3))
            raise ValueError(f"{len(places)} models with shared_embedding/embedding among its entries {listed}, …")
        (place,) = places
        others = [name for name in leaves if not name.startswith(place)]
        if others:
            warnings.warn(
                f"{path}: read the parameters below {shown(place)}; {len(others)} other entries, such as "
                f"{shown(others[0])}, are the state of the training and not converted",
                stacklevel=4,
            )
        return {name.removeprefix(place): _array(name, leaf) for name, leaf in leaves.items() if name.startswith(place)}


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """List what the dictionaries hold, by its name."""
    if len(name) > MAX_NAME:
        raise ValueError(f"a name of more than {MAX_NAME} characters, {shown(name)}")
    if not isinstance(tree, dict) or CHUNKED in tree:
        yield name, tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{name}/{key}" if name else key)


def _array(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, dict):
        shape, chunks = (_in_order(leaf[part]) for part in ("shape", "chunks"))
        return np.concatenate([_array(name, chunk).reshape(-1) for chunk in chunks]).reshape(_checked(name, shape))
    if not isinstance(leaf, Extension) or leaf.code != ARRAY:
        raise ValueError(f"{shown(name)} is no array")
    match parse_msgpack(leaf.data):
        case [list(shape), str(dtype), memoryview() as data] if dtype in DTYPES:
            if prod(_checked(name, shape)) * DTYPES[dtype].itemsize != len(data):
                raise ValueError(f"{shown(name)} of shape {shown(shape)} and dtype {dtype} has {len(data):,} bytes")
            return np.frombuffer(data, DTYPES[dtype]).reshape(shape)
        case [_, str(dtype), _]:
            raise ValueError(f"{shown(name)} has dtype {shown(dtype)}: expected one of {', '.join(DTYPES)}")
    raise ValueError(f"{shown(name)} is no array")


def _in_order(entries: Any) -> list[Any]:
    """Return the entries of a sequence, which Flax writes as a dictionary with the keys "0", "1", …"""
    return [entries[str(i)] for i in range(len(entries))]


def _checked(name: str, shape: list[Any]) -> list[int]:
    if len(shape) > MAX_AXES or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"{shown(name)} has the shape {shown(shape)}")
    return shape
