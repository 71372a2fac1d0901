"""Reading and writing files: JSON objects, and replacing any file atomically."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pegasusx_ref.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint folder.

    Raises:
        CheckpointError: the file is missing or does not contain a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "the folder has no such file"
        if not path.parent.is_dir():
            found = "the folder does not exist, and models are not downloaded"
        raise CheckpointError(
            f"{path}: {found}; a checkpoint folder contains config.json, weights and spiece.model"
        ) from None
    except NotADirectoryError:
        raise CheckpointError(f"{path.parent}: is a file: pass the folder that contains it") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: contains a JSON {type(values).__name__}: expected an object")
    return values


def finite_or_word(value: Any) -> Any:
    """Replace a non-finite number by its name, because JSON has none."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object, sorted by key; create the folder if it does not exist."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: `path` is either the old file or the complete new one.

    A symbolic link is replaced, not its target, which may be in a shared cache. A process that has the old file mapped
    into memory keeps the old content.

    Args:
        path: the file; its folder is created if it does not exist.

    Returns:
        A context manager that yields a temporary path to write to; it replaces the file when the block ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.touch()
    mode = unfinished.stat().st_mode
    try:
        yield unfinished
        unfinished.chmod(mode)  # some writers restrict it
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
