"""Entries of a checkpoint's settings files, config.json and generation_config.json."""

import dataclasses
from typing import Any, TypeGuard


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
