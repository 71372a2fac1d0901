"""The specification's sections by number or by place in the model, with their golden source code."""

import inspect
import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import pegasusx_ref
from pegasusx_ref.errors import InputError
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general

HEADING = re.compile(r"^##? (?:(\d+(?:\.\d+)?) )?(.*)$", re.MULTILINE)
CODE = re.compile(r"^Code: \[`([\w.]+)`\]\(.*\)$\n*", re.MULTILINE)
EXAMPLE = re.compile(r"^```python$.*?^```$\n*", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$\n*", re.MULTILINE | re.DOTALL)
EQUATION = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)

# The sections that explain a scope, the most specific first.
SCOPES: dict[str, str] = {
    "encoder": "9.3 9.2 3.4 3.3",
    "encoder.layers.{i}": "9.2 9.1 5.7 8.2",
    "encoder.layers.{i}.tokens": "9.2 5.7",
    "encoder.layers.{i}.globals": "9.2 5.7",
    "encoder.layers.{i}.self_attn": "9.1 7.4 7.1 7.2 8.1 8.2",
    "encoder.layers.{i}.self_attn.tokens": "9.1 6.5 6.6",
    "encoder.layers.{i}.self_attn.globals": "9.1 6.5 6.6",
    "encoder.layers.{i}.self_attn.local": "7.1 8.1 8.2 7.3 6.4 1.1",
    "encoder.layers.{i}.self_attn.local.{n}": "7.1 8.1 8.2 7.3 6.4 1.1",
    "encoder.layers.{i}.self_attn.global": "7.2 7.3 6.4",
    "decoder": "10.6 10.5 3.4 3.3",
    "decoder.layers.{i}": "10.5 10.3 10.4 5.7",
    "decoder.layers.{i}.self_attn": "10.3 6.4 6.7 10.8",
    "decoder.layers.{i}.encoder_attn": "10.4 6.4 10.8",
}
# The sections that explain a tensor, by the last part of its name; those of its scope follow.
TENSORS: dict[str, str] = {
    "embed_tokens": "3.1 3.4",
    "embeddings": "3.3 3.2",
    "embed_global": "9.3",
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "6.5 6.1 5.1"),
    "scores": "6.4",
    "probs": "6.3 6.4",
    "context": "6.4",
    "out_proj": "6.6 6.2 5.1",
    **dict.fromkeys(
        ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm", "layer_norm"),
        "4.1 4.2",
    ),
    "fc1": "5.1 5.7",
    "activation": "5.6 5.7",
    "fc2": "5.1 5.7",
    "output": "5.7",
    **dict.fromkeys(("input", "self_attn_residual", "encoder_attn_residual"), ""),  # only the layer's sections
    "lm_head": "11 5.1 14.5",
}


class Section(NamedTuple):
    """A numbered section of the specification, or the introduction of a chapter.

    Attributes:
        number: "7.1"; "7" is the introduction of chapter 7.
        title: without the number.
        text: Markdown with examples and equations, without the heading and the `Code:` line.
        equations: the LaTeX between $$ and $$.
        functions: dotted name of the function that the section defines; an introduction has none.
    """

    number: str
    title: str
    text: str
    equations: tuple[str, ...]
    functions: tuple[str, ...]

    @property
    def prose(self) -> str:
        """The text without its examples; a colon before an example becomes a full stop."""
        announced = re.sub(rf":\n+(?={EXAMPLE.pattern})", ".\n\n", self.text, flags=EXAMPLE.flags)
        return EXAMPLE.sub("", announced).strip()


class Source(NamedTuple):
    """The source code of a function or class.

    Attributes:
        path: relative to the package's parent folder, as in "pegasusx_ref/golden/global_local.py".
        first_line: its number in the file.
        lines: the code, without line ends.
    """

    path: str
    first_line: int
    lines: tuple[str, ...]


def spec_folder() -> Path:
    """Find the pages of the specification: beside the package in a checkout, inside it in an installation.

    Raises:
        InputError: they are in neither place.
    """
    package = Path(pegasusx_ref.__file__).parent
    candidates = (package.parent / "spec", package / "spec")
    for folder in candidates:
        if (folder / "01-notation.md").is_file():
            return folder
    raise InputError(
        f"the specification is neither in {candidates[0]} nor in {candidates[1]}: install pegasusx-ref from its wheel, "
        "or run it from a checkout"
    )


@cache
def sections() -> dict[str, Section]:
    """Read every section of the specification, by number and in order; "7" is the introduction of chapter 7.

    Raises:
        InputError: the specification is not there.
    """
    found: dict[str, Section] = {}
    for page in sorted(spec_folder().glob("[0-9]*.md")):
        text = page.read_text(encoding="utf-8")
        headings = list(HEADING.finditer(FENCED.sub(blanked, text)))
        ends = [heading.start() for heading in headings[1:]] + [len(text)]
        for heading, end in zip(headings, ends, strict=True):
            number, title = heading.groups()
            if number is not None:
                body = text[heading.end() : end]
                functions, equations = CODE.findall(body), EQUATION.findall(body)
                prose = CODE.sub("", body).strip()
                found[number] = Section(number, title, prose, tuple(equations), tuple(functions))
    return found


def blanked(match: re.Match[str]) -> str:
    """Replace a match by spaces of the same length, so that later positions stay valid."""
    return re.sub(r"[^\n]", " ", match.group())


def places() -> list[str]:
    """List all places that can be explained, in the order of `TRACE_POINTS`: a trace point follows its scopes."""
    found: dict[str, None] = {}
    for point in TRACE_POINTS:
        ends = [i for i, letter in enumerate(point) if letter == "."]
        found |= dict.fromkeys(point[:end] for end in ends if point[:end] in SCOPES)
        found[point] = None
    return list(found)


def sections_at(place: str) -> list[Section]:
    """Find the sections that explain a place, the most specific first.

    Args:
        place: a scope or a tensor, such as "encoder.layers.1.self_attn"; "{i}" and "{n}" match any number.

    Raises:
        InputError: there is no such place; the message suggests similar ones.
    """
    name = general(place)
    if name in SCOPES:
        numbers = SCOPES[name]
    elif name in TRACE_POINTS:
        scope, _, tensor = name.rpartition(".")
        while scope and scope not in SCOPES:
            scope = scope.rpartition(".")[0]
        numbers = f"{TENSORS[tensor]} {SCOPES.get(scope, '')}"
    else:
        raise InputError(unknown_place(place))
    return [sections()[number] for number in dict.fromkeys(numbers.split())]


def unknown_place(place: str) -> str:
    """Write the message for an unknown place, with suggestions of similar spelling."""
    near = get_close_matches(general(place), places(), n=3, cutoff=0.5)
    layer, block = re.search(r"\blayers\.(\d+)", place), re.search(r"\blocal\.(\d+)", place)
    numbers = {"i": layer[1] if layer else "0", "n": block[1] if block else "0"}
    names = [name.format(**numbers) for name in near]
    hint = f"did you mean {' or '.join(names)}?" if names else "pegasusx-ref explain lists all places"
    return f"place {place!r} is unknown: {hint}"


def golden_source(function_name: str) -> Source:
    """Read the source code of a function, class or method of the package.

    Args:
        function_name: dotted, as in the `Code:` line of a section.

    Raises:
        InputError: the package does not define it.
    """
    try:
        target = inspect.unwrap(resolve_name(function_name))  # a context manager wraps its function
        file, (lines, first_line) = inspect.getsourcefile(target), inspect.getsourcelines(target)
    except (ImportError, AttributeError, TypeError, ValueError):
        raise InputError(f"{function_name!r} is not a function or class of pegasusx_ref") from None
    path = Path(str(file)).relative_to(Path(pegasusx_ref.__file__).parents[1])
    return Source(path.as_posix(), first_line, tuple(line.rstrip("\n") for line in lines))
