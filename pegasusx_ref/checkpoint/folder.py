"""Reading and writing the files of a checkpoint folder, as transformers writes and reads them. [spec 14]"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.checkpoint.settings import read_settings
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.json_files import json_text
from pegasusx_ref.files.writing import replacing_all

PREFIX = "model."
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
SETTINGS = ("generation_config.json", "config.json")
# The same value in config.json and in the metadata of the weights that were saved with it.
IDENTITY = "weights_id"
# Tensors that older tools wrote and no PEGASUS-X model reads: the fixed position table, version marks.
UNREAD = ("embed_positions.weight", "encoder.version", "decoder.version")


def read_tensors(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Path]]:
    """Read every tensor of a checkpoint folder, whatever model it belongs to.

    Args:
        folder: holds model.safetensors or pytorch_model.bin, whole or sharded with an index file.
        config: the entries of its config.json.

    Returns:
        Tensors in the dtypes of the files, by name without the ``model.`` prefix; they are mapped into memory, not
        copied. And the file that each came from, by the same names.

    Raises:
        CheckpointError: a file is missing or corrupt, two files hold the same tensor, or the weights and config.json
            were not saved together.
    """
    tensors: dict[str, np.ndarray] = {}
    files: dict[str, Path] = {}
    for path, read in _weight_files(folder):
        found, metadata = read(path)
        _check_identity(path, metadata, config)
        for full_name, tensor in found.items():
            name = full_name.removeprefix(PREFIX)
            if name.endswith(UNREAD):
                continue
            if name in files:
                raise CheckpointError(f"{path}: tensor {shown(full_name)} is also in {files[name].name}")
            tensors[name] = tensor
            files[name] = path
    return tensors, files


Reader = Callable[[Path], tuple[dict[str, np.ndarray], Mapping[str, str]]]


def _weight_files(folder: Path) -> list[tuple[Path, Reader]]:
    from pegasusx_ref.checkpoint.pickle_file import read_pickle
    from pegasusx_ref.checkpoint.safetensors_file import read_safetensors

    for file_name, read in ((SAFETENSORS, read_safetensors), (PICKLE, read_pickle)):
        if os.path.lexists(folder / file_name):
            return [(folder / file_name, read)]
        index = folder / f"{file_name}.index.json"
        if os.path.lexists(index):
            weight_map = read_settings(index).get("weight_map")
            names = list(weight_map.values()) if isinstance(weight_map, dict) else []
            if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
                raise CheckpointError(f"{index}: has no 'weight_map' from tensor names to files of this folder")
            for name in (shards := sorted(set(names))):
                if not os.path.lexists(folder / name):
                    raise CheckpointError(f"{folder / name}: missing, although {index.name} names it")
            return [(folder / name, read) for name in shards]
    raise CheckpointError(
        f"{folder}: no weights found; expected {SAFETENSORS} or {PICKLE}, or shards with {SAFETENSORS}.index.json or "
        f"{PICKLE}.index.json"
    )


def _check_identity(path: Path, metadata: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Refuse weights beside the config.json of another save, as a save that was killed leaves them."""
    expected, found = metadata.get(IDENTITY), config.get(IDENTITY)
    if expected not in (None, found):
        raise CheckpointError(
            f"{path}: was not saved together with config.json ({IDENTITY} is {shown(expected)} here, {shown(found)} "
            f"there): save the model again, or load it again if it is just being saved; if they do belong together, "
            f"write {IDENTITY} of the weights into config.json"
        )


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    get: Callable[[str], np.ndarray],
    prefix: str,
    settings: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the weights and settings of a checkpoint folder, all or none of them. [spec 14.7]

    All files are complete on the disk before the first one is replaced, config.json is replaced last, and it has a key
    in common with the weights. So whenever a save is killed, the folder holds the old model, or the new one, or files
    that `read_tensors` refuses.

    Args:
        folder: created if it does not exist.
        tensors: shape and dtype by name, without prefix and without tied copies.
        get: returns a tensor by its name; each is asked for once.
        prefix: "model." for `PegasusXForConditionalGeneration`, "" for `PegasusXModel`.
        settings: the entries of "generation_config.json", if the model generates, and of "config.json".

    Raises:
        OutputError: a file cannot be written; the folder keeps its old files.
    """
    from pegasusx_ref.checkpoint.safetensors_writer import file_layout, open_writer

    # Of the settings alone: weights that are replaced beside equal settings make the new model complete.
    identity = hashlib.sha256(json_text(settings).encode()).hexdigest()[:16]
    full_names = {name: name if name == "lm_head.weight" else prefix + name for name in tensors}
    ordered = sorted(tensors, key=lambda name: (-np.dtype(tensors[name][1]).itemsize, full_names[name]))
    layout = file_layout({full_names[n]: tensors[n] for n in ordered}, {"format": "pt", IDENTITY: identity})
    written = [name for name in SETTINGS if name in settings]
    with replacing_all([folder / name for name in (SAFETENSORS, *written)]) as (weights, *others):
        with open_writer(weights, layout) as writer:
            for name in ordered:
                writer(full_names[name], get(name))
        for name, path in zip(written, others, strict=True):
            entries = dict(settings[name]) | ({IDENTITY: identity} if name == "config.json" else {})
            path.write_text(json_text(entries), encoding="utf-8")
