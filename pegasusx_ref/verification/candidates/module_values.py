"""Names of the values of modules, as hooks see them: outputs, inputs, parts of both, and later calls. [spec 16]

``path`` is a module's output, or the first tensor of it; ``path:output.1`` is its second output, ``path:output.probs``
the one of that name; ``path:input`` is the first input, ``path:input.1`` the second. A ``#2`` behind any of them stands
for the module's second call in a run.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.verification.candidates.mapping import find
from pegasusx_ref.verification.candidates.name_maps import Mappings

NAME = re.compile(r"([^:#]*)(?::(input|output)((?:\.\w+)*))?(?:#(\d{1,9}))?")


class Value(NamedTuple):
    """A value of a module.

    Attributes:
        name: as in the mapping.
        path: of the module.
        is_input: whether it is an input.
        parts: numbers and names that lead to it.
        call: the number of the call, from 1.
    """

    name: str
    path: str
    is_input: bool
    parts: tuple[str, ...]
    call: int


def parse_value(name: str) -> Value:
    """Parse the name of a module's value.

    Raises:
        InputError: a name of another form.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise InputError(f"mapping: {shown(name)}: expected PATH, PATH:input, PATH:output.1 or PATH#2")
    path, kind, parts, call = match.groups()
    return Value(name, path, kind == "input", tuple((parts or "").split(".")[1:]), int(call or 1))


def wanted_values(mapping: Mappings, paths: Mapping[str, Any]) -> Iterator[Value]:
    """List the values that a mapping names.

    Args:
        mapping: its lines.
        paths: the modules by path.

    Raises:
        InputError: no module has the path of a line, and lines are not optional.
    """
    for group in mapping.lines:
        named = [parse_value(name) for line in group for name in line.sources]
        found = [value for one in named for value in expand(one, paths)]
        if not found and not mapping.optional:
            raise unknown("module", named[0].path, paths)
        yield from found


def unknown(kind: str, name: str, names: Iterable[str]) -> InputError:
    """Build the error for a name of a mapping that matches nothing.

    Args:
        kind: of what it should be, such as "module".
        name: in the mapping.
        names: those that there are.
    """
    near = [shown(other) for other in get_close_matches(name, names, n=1, cutoff=0)] or ["there is none at all"]
    return InputError(f"mapping: no {kind} is called {shown(name)}; the nearest name: {near[0]}")


def expand(value: Value, paths: Mapping[str, Any]) -> Iterator[Value]:
    """Replace {i} and {n} by the numbers of all modules that there are."""
    rest = value.name[len(value.path) :]
    for _, path in find(value.path, paths):
        yield value._replace(name=path + rest, path=path)


def part_of(value: Any, parts: tuple[str, ...]) -> Any:
    """Return a part of nested outputs, and of what is left the first tensor.

    Raises:
        LookupError, AttributeError: there is no such part.
    """
    for part in parts:
        if isinstance(value, Mapping):
            value = value[part]
        elif part.isdecimal():
            values = (value,) if hasattr(value, "shape") else value  # a tensor's own index would be a row
            if int(part) >= len(values):
                raise LookupError(f"it has {len(values)}, numbered from 0")
            value = values[int(part)]
        else:
            value = getattr(value, part)
    while isinstance(value, Mapping | list | tuple) and value:
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    if value is None or isinstance(value, Mapping | list | tuple):
        raise LookupError("there is none at all")
    return value
