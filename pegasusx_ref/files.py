"""The JSON files of a checkpoint folder."""

import json
from pathlib import Path
from typing import Any

from pegasusx_ref.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint folder.

    Raises:
        CheckpointError: the file is missing or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "the folder does not exist" if not path.parent.is_dir() else "the folder has no such file"
        raise CheckpointError(f"{path}: {found}; a model folder holds config.json, weights and spiece.model") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(values).__name__}, not an object")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object, sorted by key, making the folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
