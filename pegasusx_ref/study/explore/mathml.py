"""The equations of the specification as MathML, which browsers render without a library."""

import re

from pegasusx_ref.errors import InputError

# LaTeX that GitHub renders and latex2mathml does not.
SPELLINGS = ((r"\\arg\s*\\max", r"\\mathrm{arg\\,max}"), (r"(\\text\{\w+)\\_(?=\w+\})", r"\1_"))


def as_mathml(latex: str) -> list[str]:
    """Convert an equation.

    Args:
        latex: the text between $$ and $$.

    Returns:
        <math> elements, split at each "qquad": browsers do not break lines inside an equation.

    Raises:
        InputError: latex2mathml is not installed.
    """
    try:
        from latex2mathml.converter import convert
    except ImportError:
        raise InputError("equations need latex2mathml: pip install 'pegasusx-ref[study]'") from None
    for pattern, replacement in SPELLINGS:
        latex = re.sub(pattern, replacement, latex)
    parts = [" ".join(part.split()) for part in latex.split(r"\qquad")]
    return [str(convert(part, display="block")) for part in parts if part]
