"""JSON files that hold one object."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pegasusx_ref.errors import ConfigError, reason
from pegasusx_ref.files.reading import read_bytes
from pegasusx_ref.files.writing import write_text

MAX_SIZE = 2**24  # bytes: the index of a checkpoint with 100,000 tensors
MAX_DEPTH = 64  # objects and lists inside each other: Python's own limit depends on the caller


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; for use inside `reading`, which makes one error of all.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is too large.
        ValueError: not JSON, not UTF-8, or not an object.
        RecursionError: nested too deeply.
    """
    return parse_object(read_bytes(path, MAX_SIZE))


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object; errors as for `read_json`."""
    values = json.loads(text.decode("utf-8-sig"))
    if not isinstance(values, dict):
        raise ValueError(f"it is of type {type(values).__name__}")
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH):
        level = [entry for entries in level for entry in _entries(entries)]
    if level:
        raise RecursionError
    return values


def _entries(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file by an object, sorted by key; the folder is created if it does not exist."""
    write_text(path, json_text(values))


def json_text(values: Mapping[str, Any]) -> str:
    """Format a JSON object, sorted by key.

    Raises:
        ConfigError: a value is not one of JSON.
    """
    try:
        return json.dumps(values, indent=2, sort_keys=True) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"a setting cannot be written as JSON: {reason(error)}") from error


def finite_or_word(value: Any) -> Any:
    """Replace a non-finite number by its name, because JSON has none."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
