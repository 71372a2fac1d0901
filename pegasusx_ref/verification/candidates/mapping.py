"""The mapping of a candidate's tensors to trace points. [spec 16]"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.reading import reading
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.candidates.inputs import INPUTS, Inputs
from pegasusx_ref.verification.candidates.mapped_tensors import MappedTensors, Source
from pegasusx_ref.verification.candidates.name_maps import Line, NameMap, letters, read_mapping


def map_names(
    tensors: Mapping[str, Any],
    mapping: NameMap | None,
    config: PegasusXConfig | None = None,
    inputs: Inputs | None = None,
    others: bool = True,
) -> MappedTensors:
    """Map tensors to the names of the trace points.

    Args:
        tensors: by their own names.
        mapping: see `from_dump`.
        config: the model's configuration, for mappings that name its sizes.
        inputs: of the run, where they are not among the tensors.
        others: whether tensors that the mapping does not name are kept, under their own names.

    Raises:
        InputError: a mapping that cannot be read, names a missing tensor, or maps two tensors to one name.
    """
    mappings = read_mapping(mapping)
    mapped = MappedTensors(tensors, config, inputs, mappings.name)
    ids = [group for group in mappings.lines if group[0].ours in INPUTS]
    with reading(mappings.name, "usable", InputError):
        for group in ids:  # first, because the number of blocks depends on them
            add_tensors(mapped, tensors, group, mappings.optional)
        for name in INPUTS:
            if name in tensors and name not in mapped:
                mapped.add(name, Source((name,), {}))
        for group in mappings.lines:
            if group not in ids:
                add_tensors(mapped, tensors, group, mappings.optional)
        used = mapped.used
        for name in tensors if others else ():
            if name not in used and name not in mapped:
                mapped.add(name, Source((name,), {}))
    return mapped


def add_tensors(mapped: MappedTensors, tensors: Mapping[str, Any], group: list[Line], optional: bool) -> None:
    """Add the tensors of the first line of a trace point that matches any."""
    for line in group:
        with reading(f"mapping: {line}", "usable", InputError):
            found = list(find_tensors(mapped, tensors, line))
        for name, source in found:
            with reading("mapping", "usable", InputError):
                mapped.add(name, source)
        if found:
            return
    if not optional:
        some = ", ".join(shown(name) for name in list(tensors)[:3]) or "none at all"
        more = ", …" if len(tensors) > 3 else ""
        raise InputError(
            f"mapping: {group[0]} matches no tensor of the candidate, which has {some}{more}: correct the name, or set "
            "optional = true"
        )


def find_tensors(mapped: MappedTensors, tensors: Mapping[str, Any], line: Line) -> Iterator[tuple[str, Source]]:
    """Find the tensors of a line, each with its trace-point name."""
    here = letters(line.ours)
    # The names that each part of the line matches, by the numbers that are in the trace point's name too
    matches: dict[tuple[tuple[str, int], ...], list[dict[int, str]]] = defaultdict(lambda: [{} for _ in line.names])
    for part, pattern in enumerate(line.names):
        for numbers, theirs in find(pattern, tensors):
            key = tuple((letter, number) for letter, number in numbers.items() if letter in here)
            joined, found = numbers.get("n", 0), matches[key][part]
            if joined in found:
                raise InputError(
                    f"{numbered(line.ours, dict(key))} has two sources, {shown(found[joined])} and {shown(theirs)}: "
                    "keep one"
                )
            found[joined] = theirs
    for key, parts in matches.items():
        if not all(parts):
            missing = numbered(line.names[parts.index({})], dict(key))
            raise InputError(f"the candidate has no tensor {shown(missing)}")
        names = tuple(found[number] for found in parts for number in sorted(found))
        ours, steps = numbered(line.ours, dict(key)), dict(line.steps)
        if "add" in steps:
            steps["add"] = numbered(steps["add"], dict(key))
            if steps["add"] not in tensors:
                raise InputError(f"the candidate has no tensor {shown(steps['add'])} to add")
        for name in blocks(mapped, ours):
            yield name, Source(names, steps)


def blocks(mapped: MappedTensors, ours: str) -> list[str]:
    """Return the names of all blocks where a name still has {n}: then one tensor holds them."""
    if "{n}" not in ours:
        return [ours]
    dimensions = mapped.dimensions(numbered(ours, {"n": 0}))
    count = dimensions.size("N") if dimensions.exists else 0
    return [numbered(ours, {"n": n}) for n in range(count)]


def numbered(name: str, numbers: Mapping[str, int]) -> str:
    """Put numbers in the place of {i} and {n}."""
    for letter, number in numbers.items():
        name = name.replace(f"{{{letter}}}", str(number))
    return name


def find(pattern: str, names: Mapping[str, Any]) -> Iterator[tuple[dict[str, int], str]]:
    """Find the names that a pattern matches, each with its numbers.

    Args:
        pattern: a name with {i} and {n}; a repeated one is the same number.
        names: the candidate's tensors by name.
    """
    if not letters(pattern):
        if pattern in names:
            yield {}, pattern
        return
    expression = re.escape(pattern)
    for letter in "in":
        expression = expression.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>[0-9]{{1,9}})", 1)
        expression = expression.replace(rf"\{{{letter}\}}", f"(?P={letter})")
    for name in names:
        if (match := re.fullmatch(expression, name)) is not None:
            yield {letter: int(text) for letter, text in match.groupdict().items()}, name
