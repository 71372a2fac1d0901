"""A vector read back from disk, its files compared with their checksums."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.verification.vectors.making import FORMAT, Vector
from pegasusx_ref.verification.vectors.writing import FILES, MANIFEST


def read_vector(folder: Path) -> Vector:
    """Read a vector and make sure that it is whole and as it was written.

    Args:
        folder: of one vector, which holds a manifest and three safetensors files.

    Returns:
        The vector; its manifest has the checksums too.

    Raises:
        InputError: a file is missing, is not what the manifest says, or is of another format.
    """
    manifest = read_manifest(folder)
    weights, inputs, trace = (read_checked(folder / file, manifest) for file in FILES)
    return Vector(weights, inputs, trace, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json.

    Raises:
        InputError: there is none, or it is no manifest of this format.
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
        raise InputError(f"{path}: has no {sorted(missing)[0]!r}; write the vector anew")
    return manifest


def read_checked(path: Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """Read one of a vector's files.

    Raises:
        InputError: it is missing, or its sha256 is not that of the manifest.
    """
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be read'}; write the vector anew") from None
    found, expected = hashlib.sha256(content).hexdigest(), manifest["files"][path.name]["sha256"]
    if found != expected:
        raise InputError(f"{path}: has sha256 {found[:12]}…, where the manifest says {expected[:12]}…; write it anew")
    return load(content)
