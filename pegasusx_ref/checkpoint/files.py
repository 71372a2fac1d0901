"""The files of a checkpoint folder: JSON, and writing any file as a whole."""

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
        CheckpointError: the file is missing or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "the folder has no such file"
        if not path.parent.is_dir():
            found = "the folder does not exist, and nothing is downloaded"
        raise CheckpointError(f"{path}: {found}; a model folder holds config.json, weights and spiece.model") from None
    except NotADirectoryError:
        raise CheckpointError(f"{path.parent}: is a file; give the folder that it lies in") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(values).__name__}, not an object")
    return values


def finite_or_word(value: Any) -> Any:
    """Make a word of a number that is not finite: JSON has none."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object, sorted by key, making the folder where there is none."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file so that `path` is either the old file or the whole new one.

    A link is replaced, not what it points to, which may be a shared cache; and whoever has the old file mapped into
    memory keeps it.

    Args:
        path: the file; its folder is made where there is none.

    Returns:
        A context manager that gives the path to write to; it takes the file's place when the block ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.touch()
    mode = unfinished.stat().st_mode
    try:
        yield unfinished
        unfinished.chmod(mode)  # some writers narrow it
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
