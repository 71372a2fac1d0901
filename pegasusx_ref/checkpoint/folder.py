"""Reading and writing the weights of a checkpoint folder, as transformers writes and reads them. [spec 14]"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.checkpoint.files import read_json, replacing
from pegasusx_ref.errors import CheckpointError

PREFIX = "model."
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
# Tensors that older tools wrote and no PEGASUS-X model reads: the fixed position table, version marks.
UNREAD = ("embed_positions.weight", "encoder.version", "decoder.version")


def read_tensors(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Path]]:
    """Read every tensor of a checkpoint folder, whatever model it belongs to.

    Args:
        folder: holds model.safetensors or pytorch_model.bin, whole or sharded with an index file.

    Returns:
        Tensors in the dtypes of the files, by name without the ``model.`` prefix; those of safetensors files are mapped
        into memory, not copied. And the file that each came from, by the same names.

    Raises:
        CheckpointError: a file is missing or corrupt, or two files hold the same tensor.
    """
    tensors: dict[str, np.ndarray] = {}
    files: dict[str, Path] = {}
    for path, read in _weight_files(folder):
        for full_name, tensor in read(path).items():
            name = full_name.removeprefix(PREFIX)
            if name.endswith(UNREAD):
                continue
            if name in files:
                raise CheckpointError(f"{path}: tensor {full_name!r} is also in {files[name].name}")
            tensors[name] = tensor
            files[name] = path
    return tensors, files


def _weight_files(folder: Path) -> list[tuple[Path, Callable[[Path], dict[str, np.ndarray]]]]:
    from pegasusx_ref.checkpoint.pickle_file import read_pickle
    from pegasusx_ref.checkpoint.safetensors_file import read_safetensors

    for file_name, read in ((SAFETENSORS, read_safetensors), (PICKLE, read_pickle)):
        if (folder / file_name).exists():
            return [(folder / file_name, read)]
        index = folder / f"{file_name}.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
            if not shards or not all(isinstance(shard, str) for shard in shards):
                raise CheckpointError(f"{index}: has no 'weight_map' from tensor names to file names")
            return [(folder / shard, read) for shard in sorted(shards)]
    raise CheckpointError(
        f"{folder}: no weights found; expected {SAFETENSORS} or {PICKLE}, or shards with {SAFETENSORS}.index.json or "
        f"{PICKLE}.index.json"
    )


def write_weights(folder: Path, tensors: Mapping[str, Any], prefix: str) -> None:
    """Write model.safetensors atomically. [spec 14.7]

    Args:
        folder: created if it does not exist.
        tensors: arrays by name, without prefix and without tied copies.
        prefix: "model." for `PegasusXForConditionalGeneration`, "" for `PegasusXModel`.
    """
    from safetensors.numpy import save_file

    named = {
        name if name == "lm_head.weight" else prefix + name: np.ascontiguousarray(tensor)
        for name, tensor in tensors.items()
    }
    with replacing(folder / SAFETENSORS) as unfinished:
        save_file(named, unfinished, metadata={"format": "pt"})
