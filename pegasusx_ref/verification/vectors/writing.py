"""A vector on disk: three safetensors files and a manifest that says what is in them."""

import hashlib
import json
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np

from pegasusx_ref.checkpoint.files import replacing
from pegasusx_ref.errors import InputError
from pegasusx_ref.verification.vectors.cases import CASES
from pegasusx_ref.verification.vectors.making import Vector, make_vector

MANIFEST = "manifest.json"
FILES = ("weights.safetensors", "inputs.safetensors", "trace.safetensors")
BESIDE = ("README.md", "schema.json", "example")  # what lies beside vectors in a checkout
UPWARDS = Context(prec=3, rounding=ROUND_CEILING)


def write_vectors(folder: Path, names: Sequence[str] = tuple(CASES)) -> list[Path]:
    """Write conformance vectors, each into a folder of its name. [spec 16.14]

    The numbers of weights and inputs are the same on every machine; computed tensors differ by what float64 rounds.

    Args:
        folder: made where there is none; it may hold vectors already, and nothing else.
        names: keys of `CASES`.

    Returns:
        The folders that were written.

    Raises:
        InputError: the folder is a file, holds something else, or cannot be written.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from None
    return [write_vector(folder / name, make_vector(name)) for name in names]


def check_folder(folder: Path) -> None:
    """Refuse to write among files of another kind.

    Raises:
        InputError: with the first of them.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder to write vectors into")
    for place, known in ((folder, {*CASES, *BESIDE}), *((folder / name, {MANIFEST, *FILES}) for name in CASES)):
        others = sorted(entry.name for entry in place.iterdir() if entry.name not in known) if place.is_dir() else []
        if others:
            raise InputError(f"{place}: holds {others[0]!r}, which is no vector; give a new or an empty folder")


def write_vector(folder: Path, vector: Vector) -> Path:
    """Write one vector into a folder of its own; the manifest last, so that what has one is complete.

    Args:
        folder: made where there is none.
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
    """Write JSON with a line for each tensor, and tolerances with three digits, rounded up."""
    head = {key: value for key, value in manifest.items() if key != "tensors"} | {"files": files}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    tensors = [tensor | {"tolerances": rounded_up(tensor["tolerances"])} for tensor in manifest["tensors"]]
    rows = ",\n".join(f"    {json.dumps(tensor)}" for tensor in tensors)
    return "\n".join(["{", *lines, '  "tensors": [', rows, "  ]", "}", ""])


def rounded_up(tolerances: dict[str, dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """Round the numbers of one tensor to three digits, upwards: a bound that is cut would be none."""
    return {
        arithmetic: {way: [float(UPWARDS.create_decimal_from_float(x)) for x in pair] for way, pair in ways.items()}
        for arithmetic, ways in tolerances.items()
    }
