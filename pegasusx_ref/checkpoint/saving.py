"""Writing the files of a checkpoint folder, as transformers reads them. [spec 14]"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.checkpoint.bitsandbytes import Form, stored
from pegasusx_ref.checkpoint.file_names import ADAPTER, CONFIG, GENERATION, INDEX, SAFETENSORS
from pegasusx_ref.checkpoint.folder import IDENTITY
from pegasusx_ref.checkpoint.safetensors_writer import file_layout, open_writer
from pegasusx_ref.checkpoint.tensor_names import HEAD_PARTS
from pegasusx_ref.errors import InputError, OutputError, shown
from pegasusx_ref.files.json_files import json_text
from pegasusx_ref.files.writing import replacing_all

SETTINGS = (GENERATION, CONFIG)
SHARD = "model-{:05}-of-{:05}.safetensors"
# The names of weights that are read before others, or with them: files of an earlier save under one are removed.
WEIGHTS = re.compile(rf"model-\d{{5,}}-of-\d{{5,}}\.safetensors|{re.escape(SAFETENSORS)}({re.escape(INDEX)})?")
SIZE = re.compile(r"(\d{1,15}) ?([KMGT]?)(i?)B", re.IGNORECASE)


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Form],
    get: Callable[[str], Any],
    prefix: str,
    settings: Mapping[str, Mapping[str, Any]],
    max_shard_size: int | str | None = None,
    others: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Write the weights and settings of a checkpoint folder, all or none of them. [spec 14.7]

    All files are complete on the disk before the first one is replaced, config.json is replaced last, and it has a key
    in common with the weights. So whenever a save is killed, the folder holds the old model, or the new one, or files
    that `read_tensors` refuses. Weights of an earlier save under other names are removed.

    Args:
        folder: created if it does not exist.
        tensors: the form of each by name, without prefix and without tied copies.
        get: returns a tensor by its name, an array or a quantized matrix; each is asked for once.
        prefix: "model." for `PegasusXForConditionalGeneration`, "" for `PegasusXModel`.
        settings: the entries of "generation_config.json", if the model generates, and of "config.json".
        max_shard_size: of a weight file, see `shard_size`; None for one file. A larger tensor has a file of its own.
        others: the content of other files by name, such as a tokenizer's.

    Returns:
        The files that were written.

    Raises:
        OutputError: a file cannot be written, or the folder is that of an adapter; it keeps its old files.
    """
    if os.path.lexists(folder / ADAPTER):
        raise OutputError(f"{folder}: holds an adapter, which transformers would add to it: name another folder")
    full_names = {name: name if name.startswith(HEAD_PARTS) else prefix + name for name in tensors}
    parts = {name: form.layout(full_names[name]) for name, form in tensors.items()}
    ordered = sorted(tensors, key=lambda name: (-_itemsize(parts[name][full_names[name]]), full_names[name]))
    sizes = {name: sum(prod(e[0]) * _itemsize(e) for e in parts[name].values()) for name in ordered}
    shards = _shards(sizes, shard_size(max_shard_size))
    is_sharded = len(shards) > 1
    weights = [SHARD.format(i, len(shards)) for i in range(1, len(shards) + 1)] if is_sharded else [SAFETENSORS]
    texts = dict(others or {})
    if is_sharded:
        files = {name: file for file, shard in zip(weights, shards, strict=True) for name in shard}
        weight_map = {part: file for name, file in files.items() for part in parts[name]}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        texts[SAFETENSORS + INDEX] = json_text(index).encode()

    # Of the settings alone: weights that are replaced beside equal settings make the new model complete. Shards are
    # not replaced at once, so that theirs is of the numbers too, and written when all are known.
    kept = {name: entry for name, entry in settings[CONFIG].items() if name != IDENTITY}  # of an earlier save
    settings = {**settings, CONFIG: kept}
    digest = hashlib.sha256(json_text(settings).encode())
    identity = _identity(digest)
    layouts = []
    for shard in shards:
        found = [part for name in shard for part in parts[name].items()]
        found.sort(key=lambda part: -_itemsize(part[1]))
        layouts.append(file_layout(dict(found), {"format": "pt", IDENTITY: identity}))
    written = [*weights, *texts, *(name for name in SETTINGS if name in settings)]
    paths = [folder / name for name in written]
    with replacing_all(paths, lambda: _superseded(folder, written)) as temporaries:
        for shard, layout, path in zip(shards, layouts, temporaries, strict=False):
            with open_writer(path, layout) as writer:
                for name in shard:
                    for part, array in stored(full_names[name], get(name), tensors[name].dtype).items():
                        tensor = np.asarray(array, order="C")
                        writer(part, tensor)
                        if is_sharded:
                            digest.update(tensor.reshape(-1).view(np.uint8).data)
        for layout, path in zip(layouts, temporaries, strict=False):
            with path.open("r+b") as file:
                file.seek(layout.header.index(identity.encode()))
                file.write(_identity(digest).encode())
        for name, path in list(zip(written, temporaries, strict=True))[len(shards) :]:
            if name in settings:
                entries = dict(settings[name]) | ({IDENTITY: _identity(digest)} if name == CONFIG else {})
                path.write_bytes(json_text(entries).encode())
            else:
                path.write_bytes(texts[name])
    return paths


def _itemsize(entry: tuple[tuple[int, ...], str]) -> int:
    return np.dtype(entry[1]).itemsize


def shard_size(value: int | str | None) -> int | None:
    """Return a size in bytes.

    Args:
        value: a number of bytes, or a text such as "5GB" or "200 MiB"; None is no limit.

    Raises:
        InputError: neither, or 0.
    """
    match = SIZE.fullmatch(value) if isinstance(value, str) else None
    if match:
        base = 1024 if match[3] else 1000
        value = int(match[1]) * base ** " KMGT".index(match[2].upper() or " ")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InputError(
            f"max_shard_size={shown(value)} must be a number of bytes, or a size such as '5GB' or '200MiB'"
        )
    return value


def _shards(sizes: Mapping[str, int], limit: int | None) -> list[list[str]]:
    """Distribute tensors in their order, each into the last file if it fits there, else into a new one."""
    shards: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if shards[-1] and limit is not None and total + size > limit:
            shards.append([])
            total = 0
        shards[-1].append(name)
        total += size
    return shards


def _superseded(folder: Path, written: Iterable[str]) -> list[Path]:
    return [path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name) and path.name not in written]


def _identity(digest: Any) -> str:
    return str(digest.hexdigest()[:16])
