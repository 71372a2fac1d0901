"""Options of the commands that check another implementation: its arithmetic, names, known differences, reports."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from pegasusx_ref.cli.commands import INPUT_FILE, OUTPUT_FILE
from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.cli.printing import print_json, print_text
from pegasusx_ref.errors import InputError
from pegasusx_ref.files.writing import write_text
from pegasusx_ref.verification.checking.arithmetics import ALIASES, ARITHMETICS, DTYPES, Arithmetic, get_arithmetic
from pegasusx_ref.verification.known_differences import KnownDifference, read_known
from pegasusx_ref.verification.reports import as_dict, as_html, as_junit, as_text
from pegasusx_ref.verification.verdicts import Report


def arithmetic_option(name: str) -> Callable[[Any], Any]:
    """Build the option for what an implementation computes in."""
    return click.option(
        name,
        default="float32",
        show_default=True,
        metavar="NAME",
        callback=lambda _, __, value: parse_arithmetic(name, value),
        help=f"What the implementation computes in: {', '.join(ARITHMETICS)}; settings may follow, such as "
        "'bfloat16, softmax=bfloat16, parameters=float32, residual=float32'.",
    )


def parse_arithmetic(option: str, value: str) -> Arithmetic:
    """Return the arithmetic of an option.

    Args:
        option: its name.
        value: the arithmetic's name, with settings.

    Raises:
        UsageError: the name or a setting is unknown.
    """
    try:
        return get_arithmetic(value)
    except InputError as error:
        base, names = value.split(",")[0].strip(), {name.lower(): name for name in (*ARITHMETICS, *ALIASES)}
        names |= SHORT_NAMES
        if base in names.values():
            raise UsageError(str(error).replace("arithmetic=", f"{option} ", 1)) from None
        near = get_close_matches(base.lower(), names, n=1)
        some = names[near[0]] if near else ", ".join((*DTYPES, "tf32"))
        raise UsageError(f"{option} {value} is not known: pass {some}, or another name that --help lists") from None


SHORT_NAMES = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}

map_option = click.option(
    "--map",
    "mapping",
    type=INPUT_FILE,
    metavar="FILE",
    help="TOML: maps trace points to the dump's tensors; or transformers, or flax, for a mapping that comes with this "
    "package. A tensor that already has a trace point's name needs no line.",
)
strict_option = click.option(
    "--strict", is_flag=True, help="Fail if a tensor of the run is missing or a name of the dump is unknown."
)
all_option = click.option("--all", "everything", is_flag=True, help="List the tensors that pass too.")
html_option = click.option(
    "--html", type=OUTPUT_FILE, metavar="FILE", help="Write an HTML page with heatmaps of the errors."
)
junit_option = click.option(
    "--junit", type=OUTPUT_FILE, metavar="FILE", help="Write JUnit XML: one test case per tensor."
)


def show_report(
    report: Report, subject: str, strict: bool, everything: bool, as_json: bool, html: Path | None, junit: Path | None
) -> int:
    """Print a report, and write it as a page and as XML, each where a path is given.

    Args:
        report: the result.
        subject: what was checked, in words.
        strict: whether a missing tensor or an unknown name fails.
        everything: list the tensors that pass too.
        as_json: print JSON.
        html: of the page.
        junit: of the XML.

    Returns:
        The exit code.
    """
    report = replace(report, is_strict=strict)
    if as_json:
        print_json(as_dict(report))
    else:
        print_text(as_text(report, everything))
    for path, write in ((html, as_html), (junit, as_junit)):
        if path is not None:
            write_text(path, write(report, subject))
    return 0 if report.passed else 1


known_option = click.option(
    "--known",
    multiple=True,
    type=INPUT_FILE,
    metavar="FILE",
    help="Differences that do not fail, each on a line 'PATTERN: REASON, error < LIMIT'; or transformers, or flax, for "
    "a list that comes with this package. May be repeated.",
)


def read_lists(paths: Iterable[Path]) -> list[KnownDifference]:
    """Read several lists of known differences."""
    return [difference for path in paths for difference in read_known(path)]
