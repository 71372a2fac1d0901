"""Reading and writing the weights of a model folder, as transformers writes and reads them. [spec 14]"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.config import PegasusXConfig
from pegasusx_ref.errors import CheckpointError
from pegasusx_ref.files import read_json, replacing
from pegasusx_ref.weights import EMBEDDING, EMBEDDING_COPIES, parameter_shapes

PREFIX = "model."
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
# Tensors that older tools wrote and no PEGASUS-X model reads: the fixed position table, version marks.
UNREAD = ("embed_positions.weight", "encoder.version", "decoder.version")


def read_weights(folder: Path, config: PegasusXConfig, head: bool) -> tuple[dict[str, np.ndarray], PegasusXConfig]:
    """Read every tensor of a model folder and check that it is this model, whole. [spec 14.6]

    Args:
        folder: holds model.safetensors or pytorch_model.bin, whole or sharded with an index file.
        config: the model's configuration.
        head: the model has a language-model head (`PegasusXForConditionalGeneration`).

    Returns:
        Tensors in the dtypes of the files, by name without the ``model.`` prefix; those of safetensors files are mapped
        into memory, not copied. And the configuration, with tie_word_embeddings off where the files contradict it.

    Raises:
        CheckpointError: a file is missing or corrupt, or a tensor missing, surplus or misshapen.
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
    tensors, config = _resolve_ties(tensors, config, folder)
    if not head:
        tensors.pop("lm_head.weight", None)
    _check(tensors, files, folder, parameter_shapes(config, head))
    return tensors, config


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
                raise CheckpointError(f"{index}: has no 'weight_map' that says which file holds which tensor")
            return [(folder / shard, read) for shard in sorted(shards)]
    raise CheckpointError(
        f"{folder}: no weights found; expected {SAFETENSORS} or {PICKLE}, or shards with {SAFETENSORS}.index.json or "
        f"{PICKLE}.index.json"
    )


def _resolve_ties(
    tensors: dict[str, np.ndarray], config: PegasusXConfig, folder: Path
) -> tuple[dict[str, np.ndarray], PegasusXConfig]:
    """Drop the copies of the embedding table where the configuration ties them; believe the files where they differ."""
    present = [name for name in (EMBEDDING, *EMBEDDING_COPIES) if name in tensors]
    if not config.tie_word_embeddings or not present:
        return tensors, config
    table = tensors.pop(present[0])
    differing = [name for name in present[1:] if not np.array_equal(tensors[name], table, equal_nan=True)]
    for name in set(present[1:]) - set(differing):
        del tensors[name]
    tensors[EMBEDDING] = table
    if not differing:
        return tensors, config
    warnings.warn(
        f"{folder}: {', '.join(differing)} differ from {present[0]} although config.json ties them; each is used as it "
        "is stored, as transformers does (tie_word_embeddings=false says so)",
        stacklevel=4,
    )
    for name in EMBEDDING_COPIES:
        tensors.setdefault(name, table)
    return tensors, config.replace(tie_word_embeddings=False)


def _check(
    tensors: Mapping[str, np.ndarray], files: Mapping[str, Path], folder: Path, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for name, tensor in tensors.items():
        path = files.get(name, folder)
        if name not in shapes:
            raise CheckpointError(f"{path}: tensor {name!r} belongs to no part of this model; compare config.json")
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {tensor.shape}, but config.json makes it {shapes[name]}"
            )
    missing = [name for name in shapes if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{folder}: tensor {missing[0]!r}{more} is in none of its weight files")


def write_weights(folder: Path, tensors: Mapping[str, Any], prefix: str) -> None:
    """Write model.safetensors so that it is either the old file or the whole new one. [spec 14.7]

    Args:
        folder: made where there is none.
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
