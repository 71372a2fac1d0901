"""A checkpoint's settings files: config.json, generation_config.json, tokenizer_config.json."""

import dataclasses
import os
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from pegasusx_ref.errors import CheckpointError, ConfigError, shown
from pegasusx_ref.files.json_files import read_json
from pegasusx_ref.files.reading import reading


def read_settings(path: Path) -> dict[str, Any]:
    """Read the entries of a settings file.

    Raises:
        CheckpointError: the file is missing or does not contain a JSON object.
    """
    try:
        with reading(path, "a JSON object", CheckpointError):
            return read_json(path)
    except CheckpointError:
        if not os.path.lexists(path.parent):
            found = "the folder does not exist, and it is no owner/name of the Hugging Face Hub"
        elif not path.parent.is_dir():
            raise CheckpointError(f"{path.parent}: is a file: pass the folder that contains it") from None
        elif not os.path.lexists(path):
            found = "the folder has no such file"
        else:
            raise
        raise CheckpointError(
            f"{path}: {found}; a checkpoint folder contains config.json, weights and spiece.model"
        ) from None


def fields_and_extra(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Split the entries of a file into the fields of a configuration class and, under "extra", all others.

    Args:
        cls: a dataclass with a field `extra`.
        values: the entries.
    """
    known = {f.name for f in dataclasses.fields(cls)} - {"extra"}
    extra = {name: value for name, value in values.items() if name not in known}
    return {name: value for name, value in values.items() if name in known} | {"extra": extra}


def is_integer(value: object) -> TypeGuard[int]:
    """Tell whether a setting is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def as_integer(value: Any) -> int | None:
    """Convert an integer of Python, NumPy or torch; return None for anything else, True and False included."""
    try:
        return None if isinstance(value, bool) else index(value)
    except Exception:  # of the object's own conversion, too
        return None


class Limits(NamedTuple):
    """The range of a number in a settings file: an integer if the lower limit is one.

    A damaged or hostile file is refused by it before memory is allocated.
    """

    least: float
    most: float
    reason: str

    def check(self, name: str, value: object) -> None:
        """Check a value.

        Args:
            name: of the setting.
            value: of the setting.

        Raises:
            ConfigError: it is not a number, or out of range.
        """
        is_number = is_integer(value) or (isinstance(value, float) and isinstance(self.least, float))
        if not is_number or not self.least <= value <= self.most:  # type: ignore[operator]
            kind = "a number" if isinstance(self.least, float) else "an integer"
            limits = f"from {_number(self.least)} to {_number(self.most)}"
            raise ConfigError(f"{name}={shown(value)} must be {kind} {limits} ({self.reason})")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
