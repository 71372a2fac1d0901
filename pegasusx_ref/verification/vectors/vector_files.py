"""A vector on disk: three safetensors files, and a manifest with their checksums and the tensors' entries."""

import hashlib
import json
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.checkpoint.files import replacing
from pegasusx_ref.errors import InputError
from pegasusx_ref.verification.vectors.build import FORMAT, Vector, make_vector
from pegasusx_ref.verification.vectors.vector_cases import CASES

MANIFEST = "manifest.json"
FILES = ("weights.safetensors", "inputs.safetensors", "trace.safetensors")
OTHER_FILES = ("README.md", "schema.json", "example")  # next to the vectors in a checkout
ROUND_UP = Context(prec=3, rounding=ROUND_CEILING)


def write_vectors(folder: Path, names: Sequence[str] = tuple(CASES)) -> list[Path]:
    """Write conformance vectors, each into a folder of its name. [spec 16.14]

    The weights and inputs are the same on every machine; computed tensors differ by float64 rounding.

    Args:
        folder: created if it does not exist; it may already hold vectors, but nothing else.
        names: keys of `CASES`.

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
    return [write_vector(folder / name, make_vector(name)) for name in names]


def check_folder(folder: Path) -> None:
    """Refuse to write into a folder with other files.

    Raises:
        InputError: names the first of them.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder to write vectors into")
    for place, known in ((folder, {*CASES, *OTHER_FILES}), *((folder / name, {MANIFEST, *FILES}) for name in CASES)):
        others = sorted(entry.name for entry in place.iterdir() if entry.name not in known) if place.is_dir() else []
        if others:
            raise InputError(f"{place}: holds {others[0]!r}, which is not part of a vector; give a new or empty folder")


def write_vector(folder: Path, vector: Vector) -> Path:
    """Write one vector into its folder, the manifest last, so that a folder with a manifest is complete.

    Args:
        folder: created if it does not exist.
        vector: what to write.

    Returns:
        The folder.
    """
    from safetensors.numpy import save

    files = {}
    for file, tensors in zip(FILES, (vector.weights, vector.inputs, vector.trace), strict=True):
        content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
        with replacing(folder / file) as unfinished:
            unfinished.write_bytes(content)
        files[file] = {"sha256": hashlib.sha256(content).hexdigest()}
    with replacing(folder / MANIFEST) as unfinished:
        unfinished.write_text(manifest_text(vector.manifest, files), encoding="utf-8")
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
    return Vector(weights, inputs, trace, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json.

    Raises:
        InputError: the file is missing, or is not a manifest of this format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise InputError(f"{path}: {reason}; give the folder of one vector, such as spec/vectors/staggered") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise InputError(f"{path}: has format {found!r}; this version reads {FORMAT!r}")
    if missing := {"config", "files", "tensors"} - manifest.keys():
        raise InputError(f"{path}: has no {sorted(missing)[0]!r}; write the vector again")
    return manifest


def read_checked(path: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read one of a vector's files.

    Raises:
        InputError: the file is missing, or its sha256 differs from the manifest's.
    """
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be read'}; write the vector again") from None
    found, expected = hashlib.sha256(content).hexdigest(), manifest["files"][path.name]["sha256"]
    if found != expected:
        raise InputError(f"{path}: has sha256 {found[:12]}…, the manifest has {expected[:12]}…; write the vector again")
    return load(content)
