"""Writing a vector: three safetensors files, and a manifest with their checksums and the tensors' entries."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.files.writing import is_temporary, replacing_all
from pegasusx_ref.verification.vectors.build import Vector, make_vector
from pegasusx_ref.verification.vectors.quantized import QUANTIZED, QUANTIZED_ABOUT, QUANTIZED_FILES, make_quantized
from pegasusx_ref.verification.vectors.vector_cases import CASES

MANIFEST = "manifest.json"
FILES = ("weights.safetensors", "inputs.safetensors", "trace.safetensors")
GRADIENTS = "gradients.safetensors"  # of some vectors; not part of format 1, so the manifest does not list it
OTHER_FILES = ("README.md", "schema.json", "example")  # next to the vectors in a checkout
# What each vector tests, by its folder's name.
VECTORS = {name: case.about for name, case in CASES.items()} | {QUANTIZED: QUANTIZED_ABOUT}
ROUND_UP = Context(prec=3, rounding=ROUND_CEILING)


def write_vectors(folder: Path, names: Sequence[str] = tuple(VECTORS)) -> list[Path]:
    """Write conformance vectors, each into a folder of its name. [spec 16.14]

    The weights and inputs are the same on every machine; computed tensors differ by float64 rounding.

    Args:
        folder: created if it does not exist; it may already hold vectors, but nothing else.
        names: keys of `VECTORS`.

    Returns:
        The folders that were written.

    Raises:
        InputError: the folder is a file, holds other files, or cannot be written.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from None
    return [
        write_quantized(folder / name) if name == QUANTIZED else write_vector(folder / name, make_vector(name))
        for name in names
    ]


def check_folder(folder: Path) -> None:
    """Refuse to write into a folder with other files.

    Raises:
        InputError: names the first of them.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder to write vectors into")
    inside = {folder / name: {MANIFEST, *FILES, GRADIENTS} for name in CASES} | {
        folder / QUANTIZED: set(QUANTIZED_FILES)
    }
    for place, known in ({folder: {*VECTORS, *OTHER_FILES}} | inside).items():
        entries = list(place.iterdir()) if place.is_dir() else []
        others = sorted(entry.name for entry in entries if entry.name not in known and not is_temporary(entry))
        if others:
            raise InputError(f"{place}: holds {others[0]!r}, which is not part of a vector; give a new or empty folder")


def write_vector(folder: Path, vector: Vector) -> Path:
    """Write one vector into its folder, all files at once and the manifest last: it has the checksums of the others.

    Args:
        folder: created if it does not exist.
        vector: what to write.

    Returns:
        The folder.

    Raises:
        OutputError: a file cannot be written.
    """
    contents = {
        file: safetensors_bytes(tensors)
        for file, tensors in zip(FILES, (vector.weights, vector.inputs, vector.trace), strict=True)
    }
    checksums = {file: {"sha256": hashlib.sha256(content).hexdigest()} for file, content in contents.items()}
    if vector.gradients:
        contents[GRADIENTS] = safetensors_bytes(vector.gradients)
    contents[MANIFEST] = manifest_text(vector.manifest, checksums).encode()
    return write_files(folder, contents)


def write_quantized(folder: Path) -> Path:
    """Write the quantized vector into its folder; arguments, result and errors as for `write_vector`."""
    return write_files(folder, {file: safetensors_bytes(tensors) for file, tensors in make_quantized().items()})


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of a safetensors file."""
    from safetensors.numpy import save

    return save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()})


def write_files(folder: Path, contents: Mapping[str, bytes]) -> Path:
    """Write all files at once, or none."""
    with replacing_all([folder / file for file in contents]) as temporaries:
        for temporary, content in zip(temporaries, contents.values(), strict=True):
            temporary.write_bytes(content)
    return folder


def manifest_text(manifest: dict[str, Any], files: dict[str, dict[str, str]]) -> str:
    """Format JSON with one line for each tensor, and tolerances rounded up to three digits."""
    head = {key: value for key, value in manifest.items() if key != "tensors"} | {"files": files}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    tensors = [tensor | {"tolerances": rounded_up(tensor["tolerances"])} for tensor in manifest["tensors"]]
    rows = ",\n".join(f"    {json.dumps(tensor)}" for tensor in tensors)
    return "\n".join(["{", *lines, '  "tensors": [', rows, "  ]", "}", ""])


def rounded_up(tolerances: dict[str, dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """Round one tensor's tolerances up to three digits; rounding down would invalidate a bound."""
    return {
        arithmetic: {way: [float(ROUND_UP.create_decimal_from_float(x)) for x in pair] for way, pair in ways.items()}
        for arithmetic, ways in tolerances.items()
    }
