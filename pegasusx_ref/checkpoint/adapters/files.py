"""Reading the files of a PEFT adapter. [spec 14]"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pegasusx_ref.checkpoint.adapters.config import AdapterConfig
from pegasusx_ref.checkpoint.adapters.merge import Adapter, Update
from pegasusx_ref.checkpoint.file_names import ADAPTER, ADAPTER_WEIGHTS
from pegasusx_ref.checkpoint.tensor_names import clean_names
from pegasusx_ref.checkpoint.weight_file import read_weight_file
from pegasusx_ref.errors import CheckpointError, shown

PEFT_PREFIX = "base_model.model."
MAGNITUDE, BIAS = "lora_magnitude_vector", "lora_B.bias"
FACTORS = ("lora_B.weight", "lora_A.weight")
TABLE_FACTORS = ("lora_embedding_A", "lora_embedding_B")
# Behind the name of a module: a part of its adapter.
PART = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?)")
BASE_LAYER = re.compile(r"(.+)\.base_layer(\.weight|\.bias)")
# A module that the adapter has a copy of, and the copy, under the names inside peft; it saves their biases twice.
COPY = re.compile(r"(.+)\.(?:original_module|modules_to_save)(\.bias)")


def read_adapter(folder: Path) -> Adapter:
    """Read the adapter of a PEFT folder.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors or adapter_model.bin.

    Raises:
        CheckpointError: a file is missing or damaged, or the adapter holds something that cannot be merged.
    """
    config = AdapterConfig.read(folder / ADAPTER)
    path = next((folder / name for name in ADAPTER_WEIGHTS if os.path.lexists(folder / name)), None)
    if path is None:
        raise CheckpointError(f"{folder}: no adapter weights found; expected {' or '.join(ADAPTER_WEIGHTS)}")
    found, _ = read_weight_file(path)
    names, _ = clean_names(path, found)
    cleaned = set(names.values())
    if len(cleaned) < len(names):
        raise CheckpointError(f"{path}: two tensors have the same name behind their prefixes")
    replaced: dict[str, np.ndarray] = {}
    own: dict[str, np.ndarray] = {}
    parts: dict[tuple[str, str], dict[str, np.ndarray]] = defaultdict(dict)
    for full_name, tensor in found.items():
        name = names[full_name]
        if part := PART.fullmatch(name):
            full_module = PART.sub(r"\1", full_name.removeprefix(PEFT_PREFIX))
            kind = MAGNITUDE if part[2].startswith(MAGNITUDE) else part[2]
            if kind in parts[part[1], full_module]:
                raise CheckpointError(f"{path}: tensor {shown(full_name)} is there twice")
            parts[part[1], full_module][kind] = tensor
        elif base := BASE_LAYER.fullmatch(name):
            replaced[base[1] + base[2]] = tensor
        elif (copy := COPY.fullmatch(name)) and copy[1] + copy[2] in cleaned:
            continue
        else:
            module = full_name.rpartition(".")[0]
            (own if module.endswith(config.saved_modules) else replaced)[name] = tensor
    updates, biases = {}, {}
    for (module, full_module), tensors in parts.items():
        updates[f"{module}.weight"] = update = _update(path, config, full_module, tensors)
        if (bias := tensors.get(BIAS)) is not None:
            biases[f"{module}.bias"] = bias, update.scale
    return Adapter(path, updates, biases, replaced, own, config.is_tied)


def _update(path: Path, config: AdapterConfig, module: str, parts: Mapping[str, np.ndarray]) -> Update:
    place = f"{path}: the adapter of {shown(module)}"
    is_table = any(name in parts for name in TABLE_FACTORS)  # they are stored transposed
    factors = TABLE_FACTORS if is_table else FACTORS
    if not set(factors) <= parts.keys() <= {*factors, MAGNITUDE, BIAS}:
        raise CheckpointError(f"{place} has the parts {', '.join(sorted(parts))}: expected {' and '.join(factors)}")
    left, right = (parts[name].T if is_table else parts[name] for name in factors)
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or left.shape[1] not in config.ranks:
        raise CheckpointError(
            f"{place} has factors of shapes {left.shape} and {right.shape}: expected an inner size of the rank, "
            f"{' or '.join(map(str, sorted(config.ranks)[:8]))}"
        )
    magnitude = parts.get(MAGNITUDE)
    if (magnitude is not None) != config.has_magnitudes:
        raise CheckpointError(f"{place} and use_dora in {ADAPTER} contradict each other about a magnitude vector")
    if magnitude is not None:
        size = right.shape[1] if is_table else left.shape[0]
        if magnitude.shape != (size,):
            raise CheckpointError(f"{place} has a magnitude vector of shape {magnitude.shape}: expected {(size,)}")
        magnitude = magnitude.reshape((1, -1) if is_table else (-1, 1))
    return Update(left, right, config.scale(module, left.shape[1]), magnitude)
