"""How a token, a global token or a decode step is computed: equations, shapes and golden code of the sections."""

import ast
import textwrap
from typing import NamedTuple

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.study.explore.mathml import as_mathml
from pegasusx_ref.study.shape_inference import dimension_sizes
from pegasusx_ref.study.spec_sections import Source, golden_source, sections
from pegasusx_ref.tracing.trace_points import TRACE_POINTS

_LOCAL, _GLOBAL = "encoder.layers.{i}.self_attn.local.{n}", "encoder.layers.{i}.self_attn.global"
_CROSS = "decoder.layers.{i}.encoder_attn"
_ATTENTION = ("scores", "probs", "context")
_DECODER_FFN = ("decoder.layers.{i}.fc1", "decoder.layers.{i}.output")

# For each kind of item on the page: the sections that define its computation, in the order of execution, with the
# tensors that they compute.
STAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "token": {
        "3.3": ("encoder.embed_tokens", "encoder.embeddings"),
        "4.1": ("encoder.layers.{i}.tokens.self_attn_layer_norm",),
        "9.1": ("encoder.layers.{i}.self_attn.tokens.q_proj", "encoder.layers.{i}.self_attn.tokens.k_proj"),
        "8.1": (),
        "7.1": (f"{_LOCAL}.probs",),
        "6.4": tuple(f"{_LOCAL}.{name}" for name in _ATTENTION),
        "5.7": ("encoder.layers.{i}.tokens.fc1", "encoder.layers.{i}.tokens.output"),
    },
    "global": {
        "4.1": ("encoder.layers.{i}.globals.self_attn_layer_norm",),
        "9.1": ("encoder.layers.{i}.self_attn.globals.q_proj", "encoder.layers.{i}.self_attn.tokens.k_proj"),
        "7.2": (f"{_GLOBAL}.probs",),
        "6.4": tuple(f"{_GLOBAL}.{name}" for name in _ATTENTION),
        "5.7": ("encoder.layers.{i}.globals.fc1", "encoder.layers.{i}.globals.output"),
    },
    "step": {
        "3.3": ("decoder.embed_tokens", "decoder.embeddings"),
        "10.5": ("decoder.layers.{i}.output",),
        "10.3": ("decoder.layers.{i}.self_attn.probs",),
        "10.4": (f"{_CROSS}.q_proj", f"{_CROSS}.k_proj", f"{_CROSS}.out_proj"),
        "6.4": tuple(f"{_CROSS}.{name}" for name in _ATTENTION),
        "5.7": _DECODER_FFN,
        "11.1": ("lm_head",),
        "12.4": (),
    },
}
FIRST_OPEN = {"token": "7.1", "global": "7.2", "step": "6.4"}


class Line(NamedTuple):
    """A numbered line of golden code."""

    number: int
    text: str


class Stage(NamedTuple):
    """A section of the specification, for one kind of item.

    Attributes:
        kind: "token", "global" or "step".
        number: of the section.
        title: of the section.
        equations: parts of the equations as MathML.
        shapes: the dimensions of every tensor as letter and size; None for a size that depends on the block.
        source: the golden function.
        lines: its code, with only the first line of the docstring.
        is_open: whether the section is expanded initially.
    """

    kind: str
    number: str
    title: str
    equations: list[str]
    shapes: dict[str, list[tuple[str, int | None]]]
    source: Source
    lines: list[Line]
    is_open: bool


def stages(config: PegasusXConfig, num_tokens: int, num_steps: int) -> list[Stage]:
    """Describe how every kind of item is computed.

    Args:
        config: of the model.
        num_tokens: T.
        num_steps: L.

    Raises:
        InputError: the specification or latex2mathml is missing.
    """
    found = []
    for kind, numbers in STAGES.items():
        for number, points in numbers.items():
            section = sections()[number]
            source = golden_source(section.functions[0])
            found.append(
                Stage(
                    kind,
                    number,
                    section.title,
                    [part for equation in section.equations for part in as_mathml(equation)],
                    {point: tensor_dimensions(point, config, num_tokens, num_steps) for point in points},
                    source,
                    shortened(source),
                    number == FIRST_OPEN[kind],
                )
            )
    return found


def tensor_dimensions(
    point: str, config: PegasusXConfig, num_tokens: int, num_steps: int
) -> list[tuple[str, int | None]]:
    """Return the dimensions of a tensor with their sizes.

    Args:
        point: its name, a key of `TRACE_POINTS`.
        config: of the model.
        num_tokens: T.
        num_steps: L.

    Returns:
        Letters with sizes; None for the rows (S) and keys (X) of a block.
    """
    side = "decoder" if point.startswith("decoder") else "encoder"
    sizes: dict[str, int | None] = {**dimension_sizes(config, side), "B": 1, "T": num_tokens, "L": num_steps}
    sizes |= {"S": None, "X": None}
    if ".global." in point:
        sizes["X"] = config.num_global_tokens + num_tokens
    elif side == "decoder":
        sizes["X"] = num_steps
    return [(letter, sizes[letter]) for letter in TRACE_POINTS[point]]


def shortened(source: Source) -> list[Line]:
    """Number the lines of a function and omit its docstring except for the first line."""
    numbered = [Line(source.first_line + i, text) for i, text in enumerate(source.lines)]
    (definition,) = ast.parse(textwrap.dedent("\n".join(source.lines))).body
    assert isinstance(definition, ast.FunctionDef | ast.ClassDef)
    docstring = definition.body[0]
    if ast.get_docstring(definition) is None or docstring.end_lineno is None:
        return numbered
    return numbered[: docstring.lineno] + numbered[docstring.end_lineno :]
