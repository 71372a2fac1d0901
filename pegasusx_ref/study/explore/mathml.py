"""The equations of the specification as MathML, which browsers set by themselves."""

import re

from pegasusx_ref.errors import InputError

# What GitHub's renderer of LaTeX reads and latex2mathml does not.
SPELLINGS = ((r"\\arg\s*\\max", r"\\mathrm{arg\\,max}"), (r"(?<=\w)\\_(?=\w+\})", "_"))


def as_mathml(latex: str) -> list[str]:
    """Convert an equation.

    Args:
        latex: what stands between $$ and $$.

    Returns:
        <math> elements: one for each part that a "qquad" sets apart, since browsers break no lines inside an equation.

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
