"""Reading the weights of a checkpoint folder, as transformers writes them. [spec 14]"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.checkpoint.bitsandbytes import SETTINGS, check_method, joined
from pegasusx_ref.checkpoint.file_names import INDEX, PICKLE, SAFETENSORS
from pegasusx_ref.checkpoint.foreign_folders import foreign_content
from pegasusx_ref.checkpoint.settings import read_settings
from pegasusx_ref.checkpoint.tensor_names import check_not_adapted, clean_names
from pegasusx_ref.checkpoint.weight_file import read_weight_file
from pegasusx_ref.errors import CheckpointError, shown

# The same value in config.json and in the metadata of the weights that were saved with it.
IDENTITY = "weights_id"
# Tensors that older tools wrote and no PEGASUS-X model reads: the fixed position table, version marks.
UNREAD = ("embed_positions.weight", "encoder.version", "decoder.version")


def read_tensors(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Read every tensor of a checkpoint folder, whatever model it belongs to.

    Args:
        folder: holds model.safetensors or pytorch_model.bin, whole or sharded with an index file.
        config: the entries of its config.json.

    Returns:
        Tensors in the dtypes of the files, by name without the ``model.`` prefix and without the names of wrappers such
        as torch.compile's, which are removed with a warning; they are mapped into memory, not copied. Matrices that
        bitsandbytes quantized are `QuantizedMatrix`. And the file that each came from, by the same names.

    Raises:
        CheckpointError: a file is missing or corrupt, two files hold the same tensor, the weights and config.json were
            not saved together, or they were quantized otherwise.
    """
    tensors: dict[str, np.ndarray] = {}
    files: dict[str, Path] = {}
    removed: dict[str, None] = {}
    if is_quantized := config.get(SETTINGS) is not None:
        check_method(folder, config[SETTINGS])
    for path in _weight_files(folder):
        found, metadata = read_weight_file(path, is_quantized)
        _check_identity(path, metadata, config)
        check_not_adapted(path, found)
        names, prefixes = clean_names(path, found)
        removed |= dict.fromkeys(prefixes)
        for full_name, tensor in found.items():
            name = names[full_name]
            if name.endswith(UNREAD):
                continue
            if name in files:
                raise CheckpointError(f"{path}: tensor {shown(full_name)} is also in {files[name].name}")
            tensors[name] = tensor
            files[name] = path
    if removed:
        listed = ", ".join(map(shown, removed))
        warnings.warn(f"{folder}: removed {listed} from the tensor names, as training programs leave it", stacklevel=4)
    return joined(tensors, files) if is_quantized else tensors, files


def has_weights(folder: Path) -> bool:
    """Return whether a folder has weights under the names that `read_tensors` looks for."""
    return any(os.path.lexists(folder / f"{name}{end}") for name in (SAFETENSORS, PICKLE) for end in ("", INDEX))


def _weight_files(folder: Path) -> list[Path]:
    for file_name in (SAFETENSORS, PICKLE):
        if os.path.lexists(folder / file_name):
            return [folder / file_name]
        index = folder / f"{file_name}{INDEX}"
        if os.path.lexists(index):
            for name in (shards := shard_names(index)):
                if not os.path.lexists(folder / name):
                    raise CheckpointError(f"{folder / name}: missing, although {index.name} names it")
            return [folder / name for name in shards]
    if found := foreign_content(folder):
        raise CheckpointError(f"{folder}: no weights found, but {found}")
    raise CheckpointError(
        f"{folder}: no weights found; expected {SAFETENSORS} or {PICKLE}, or shards with {SAFETENSORS}.index.json or "
        f"{PICKLE}.index.json"
    )


def shard_names(index: Path) -> list[str]:
    """Return the weight files that an index names.

    Raises:
        CheckpointError: it is damaged, or names a file of another folder.
    """
    weight_map = read_settings(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(n, str) and n == Path(n).name and n not in ("", "..") for n in names):
        raise CheckpointError(f"{index}: has no 'weight_map' from tensor names to files of this folder")
    return sorted(set(names))


def _check_identity(path: Path, metadata: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Refuse weights beside the config.json of another save, as a save that was killed leaves them."""
    expected, found = metadata.get(IDENTITY), config.get(IDENTITY)
    if expected not in (None, found):
        raise CheckpointError(
            f"{path}: was not saved together with config.json ({IDENTITY} is {shown(expected)} here, {shown(found)} "
            f"there): save the model again, or load it again if it is just being saved; if they do belong together, "
            f"write {IDENTITY} of the weights into config.json"
        )
