"""Reading a vector: its files are compared with their checksums, and its manifest with the tensors."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.json_files import read_json
from pegasusx_ref.files.reading import read_bytes, reading
from pegasusx_ref.verification.vectors.build import FORMAT, Vector
from pegasusx_ref.verification.vectors.tolerances import VECTOR_ARITHMETICS
from pegasusx_ref.verification.vectors.vector_files import FILES, GRADIENTS, MANIFEST

REMEDY = "write the vector again"
WAYS = ("exact", "rounded", "end_to_end")
INPUTS_OF_A_SHAPE = (
    ("input_ids", "attention_mask", "valid.source"),
    ("decoder_input_ids", "decoder_attention_mask", "valid.target"),
)
MAX_FILE_SIZE = 2**26  # bytes; the largest published vector has 1 million
MAX_LENGTH = 2**20  # tokens


def read_vector(folder: Path) -> Vector:
    """Read a vector and compare its files with their checksums.

    Args:
        folder: holds a manifest and three safetensors files.

    Returns:
        The vector; its manifest includes the checksums.

    Raises:
        InputError: a file is missing, differs from its checksum, or is of another format.
    """
    manifest = read_manifest(folder)
    weights, inputs, trace = (read_checked(folder / file, manifest) for file in FILES)
    with reading(folder / FILES[1], "the inputs of a run", InputError, REMEDY):
        for names in INPUTS_OF_A_SHAPE:
            if len({inputs[name].shape for name in names}) > 1 or inputs[names[0]].ndim != 2:
                raise ValueError(f"{', '.join(names)} are not of one shape of two dimensions")
    with reading(folder / MANIFEST, f"a complete manifest of {FORMAT}", InputError, REMEDY):
        for entry in manifest["tensors"]:
            check_entry(entry, inputs, trace)
    gradients = read_gradients(folder / GRADIENTS, inputs) if os.path.lexists(folder / GRADIENTS) else {}
    return Vector(weights, inputs, trace, manifest, gradients)


def read_gradients(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Read the gradients of a vector, and check its labels.

    Raises:
        InputError: another format.
    """
    from safetensors.numpy import load

    with reading(path, "a safetensors file with labels of the target's shape", InputError, REMEDY):
        gradients = load(read_bytes(path, MAX_FILE_SIZE))
        if gradients["labels"].shape != inputs["decoder_input_ids"].shape:
            raise ValueError(f"labels have shape {gradients['labels'].shape}")
        return gradients


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json.

    Raises:
        InputError: the file is missing, or is not a manifest of this format.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; give the folder of one vector, such as spec/vectors/staggered")
    with reading(path, "a JSON object", InputError, REMEDY):
        manifest = read_json(path)
    if (found := manifest.get("format")) != FORMAT:
        raise InputError(f"{path}: has format {shown(found)}; this version reads {FORMAT!r}")
    for key, kind in (("config", dict), ("files", dict), ("tensors", list)):
        if not isinstance(manifest.get(key), kind):
            raise InputError(f"{path}: has no {key!r}: {REMEDY}")
    return manifest


def check_entry(entry: dict[str, Any], inputs: Mapping[str, np.ndarray], trace: Mapping[str, np.ndarray]) -> None:
    """Check everything of a tensor's entry that the comparison uses.

    Args:
        entry: of the manifest.
        inputs: the vector's.
        trace: the vector's tensors.

    Raises:
        ValueError: an entry does not fit the tensor, or is not of its type; also KeyError and TypeError.
    """
    shape, sampled = list(entry["shape"]), entry.get("sampled")
    if sampled is not None:
        axis, indices = sampled["axis"], sampled["indices"]
        if not all(0 <= i < shape[axis] <= MAX_LENGTH for i in indices):
            raise ValueError(f"{shown(entry['name'])}: rows {shown(indices)} of {shown(shape[axis])}")
        shape[axis] = len(indices)
    slice(*entry.get("slice", (0, 0))).indices(MAX_LENGTH)
    if tuple(shape) != trace[entry["name"]].shape or not 3 <= len(shape) <= 4:
        raise ValueError(f"{shown(entry['name'])}: shape {shown(shape)} is not that of its tensor")
    if not np.isfinite(trace[entry["name"]]).all():
        raise ValueError(f"{shown(entry['name'])}: NaN or infinite")
    if not isinstance(entry["operation"], str) or (entry["valid"] is not None and inputs[entry["valid"]].ndim != 2):
        raise ValueError(f"{shown(entry['name'])}: its operation or its mask is not valid")
    for arithmetic in VECTOR_ARITHMETICS:
        for way in WAYS:
            sigma, bound = entry["tolerances"][arithmetic][way]
            if not 0 <= sigma < math.inf or not 0 <= bound < math.inf:
                raise ValueError(f"{shown(entry['name'])}: tolerances {shown((sigma, bound))}")


def read_checked(path: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read one of a vector's files.

    Raises:
        InputError: the file is missing, or its sha256 differs from the manifest's.
    """
    from safetensors.numpy import load

    with reading(path, "a safetensors file", InputError, REMEDY):
        content = read_bytes(path, MAX_FILE_SIZE)
        found, expected = hashlib.sha256(content).hexdigest(), str(manifest["files"][path.name]["sha256"])
        if found != expected:
            raise InputError(f"has sha256 {found[:12]}…, the manifest has {expected[:12]}…")
        return load(content)
