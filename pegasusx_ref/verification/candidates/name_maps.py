"""The mapping of a candidate's names to trace points: its lines, read from TOML and checked. [spec 16]"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.reading import as_path, read_bytes, reading
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general, letters_of
from pegasusx_ref.verification.candidates.array_steps import BLOCKS, JOINS, STEPS
from pegasusx_ref.verification.candidates.inputs import INPUTS, Loss
from pegasusx_ref.verification.shipped_files import IMPLEMENTATIONS, shipped_text

MAX_SIZE = 2**20  # bytes of a file
OPTIONAL = "optional"  # a key of a mapping: whether its lines may match nothing
NAMES = (*INPUTS, *Loss._fields)  # of what is no tensor of the model
PARAMETER = re.compile(r"[\w.{}]+\.(weight|bias)\.grad")  # the name of a parameter's gradient
EXPECTED = "a name, or {name = …, reshape = […], …}, with steps " + ", ".join(STEPS)


class Line(NamedTuple):
    """A line of a mapping.

    Attributes:
        ours: a trace point, with numbers or {i} and {n}; or a trace point or parameter with .grad behind.
        names: names of the candidate, with {i} and {n}; the tensors of all of them are joined by the first step.
        steps: the steps and their arguments, in order.
    """

    ours: str
    names: tuple[str, ...]
    steps: Mapping[str, Any]

    @property
    def sources(self) -> tuple[str, ...]:
        """All names of the candidate in the line."""
        return (*self.names, *([self.steps["add"]] if "add" in self.steps else []))

    def __str__(self) -> str:
        return f"{self.ours} = {shown(self.names[0] if len(self.names) == 1 else self.names)}"


class Mappings(NamedTuple):
    """The content of a mapping.

    Attributes:
        lines: for each trace point its lines, of which the first that matches is used.
        optional: whether lines may match nothing.
        name: of the file, for messages.
    """

    lines: list[list[Line]]
    optional: bool
    name: str


# A file, the name of a mapping that comes along, a mapping's content, or a mapping that was read
NameMap = str | Path | Mapping[str, Any] | Mappings


def read_mapping(source: NameMap | None) -> Mappings:
    """Read a mapping and check its lines.

    Args:
        source: a TOML file, the name of a mapping that comes with this package ("transformers" or "flax"), a mapping's
            content, or None.

    Raises:
        InputError: no such file, or a line of another form.
    """
    if isinstance(source, Mappings):
        return source
    if isinstance(source, Mapping | None):
        return parse(source or {}, "mapping")
    import tomllib

    if (shipped := shipped_text(source, "maps", ".toml")) is not None:
        return parse(tomllib.loads(shipped), str(source))
    path = as_path(source)
    if not os.path.lexists(path):
        raise InputError(
            f"{path}: no such file; the maps that come with this package are {' and '.join(IMPLEMENTATIONS)}"
        )
    with reading(path, "a TOML file", InputError):
        return parse(tomllib.loads(read_bytes(path, MAX_SIZE).decode()), str(path))


def parse(content: Mapping[str, Any], name: str) -> Mappings:
    """Parse and check a mapping.

    Args:
        content: of TOML.
        name: of the file.
    """
    lines = dict(content)
    optional = lines.pop(OPTIONAL, False)
    if not isinstance(optional, bool):
        raise InputError(f"mapping: {OPTIONAL} = {shown(optional)}: expected true or false")
    return Mappings([[parse_line(ours, x) for x in alternatives(line)] for ours, line in lines.items()], optional, name)


def alternatives(line: Any) -> Sequence[Any]:
    """Return the lines of a trace point: a list has several."""
    return line if isinstance(line, list | tuple) and line else [line]


def parse_line(ours: Any, line: Any) -> Line:
    """Parse and check one line of a mapping."""
    if not isinstance(ours, str) or not (letters_of(ours) or ours in NAMES or PARAMETER.fullmatch(ours)):
        remedy = nearest(ours, (*TRACE_POINTS, *NAMES)) or "; see pegasusx_ref.TRACE_POINTS"
        if isinstance(line, Mapping) and "name" not in line:
            remedy = ": put a name with dots in quotes"
        raise InputError(f"mapping: {shown(ours)} is not a trace point{remedy}")
    steps = {"name": line} if isinstance(line, str) else dict(line) if isinstance(line, Mapping) else {}
    names = steps.pop("name", None)
    names = tuple(alternatives(names))
    if unknown := [step for step in steps if step not in STEPS]:
        known = nearest(unknown[0], STEPS) or f": pass one of {', '.join(STEPS)}"
        raise InputError(f"mapping: {ours}: {shown(unknown[0])} is not a step{known}")
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(f"mapping: {ours} = {shown(line)}: expected {EXPECTED}")
    here, there = letters(ours), set.union(*map(letters, names))
    if here - there - {"n"} or there - here - {"n"}:
        raise InputError(f"mapping: {ours} = {shown(names[0])}: {{i}} must be on both sides")
    first, several = next(iter(steps), None), len(names) > 1 or "n" in there - here
    if several != (first in JOINS) or any(step in JOINS for step in list(steps)[1:]):
        raise InputError(
            f"mapping: {ours} = {shown(line)}: {' or '.join(JOINS)} must be the first step where several tensors are "
            "one, and nowhere else; or {n} must be on both sides"
        )
    if "n" in here - there and not set(BLOCKS) & set(steps):
        raise InputError(
            f"mapping: {ours} = {shown(names[0])}: {{n}} must be on both sides, or the line needs the step "
            f"{' or '.join(BLOCKS)}, which makes blocks of one tensor"
        )
    if "add" in steps and (not isinstance(steps["add"], str) or letters(steps["add"]) - here):
        raise InputError(f"mapping: {ours}: add = {shown(steps['add'])}: expected a name of the candidate")
    return Line(ours, names, steps)


def nearest(name: Any, names: Iterable[str]) -> str:
    """Return the end of a message that suggests the nearest of some names; "" if none is near."""
    near = get_close_matches(general(name), names, n=1) if isinstance(name, str) else []
    return f"; the nearest name: {near[0]!r}" if near else ""


def letters(name: str) -> set[str]:
    """Return which of {i} and {n} a name has."""
    return {letter for letter in "in" if f"{{{letter}}}" in name}
