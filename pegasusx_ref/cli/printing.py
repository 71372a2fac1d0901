"""Tables, prose and code on stdout: styled on a terminal, plain when piped."""

import json
import re
import sys
from typing import Any

import click

from pegasusx_ref.errors import CONTROL, printable
from pegasusx_ref.rendering.tables import Table, as_lines

OURS = re.compile("(\n|\x1b\\[[014]m)")  # line breaks, and click's marks of bold, underlined and ordinary text


def print_text(text: str = "") -> None:
    """Print text; other control characters than ours, as in the names of files and tensors, are escaped."""
    click.echo("".join(part if OURS.fullmatch(part) else printable(part) for part in OURS.split(text)))


def print_json(values: object) -> None:
    """Print JSON in one line; control characters and what the terminal's encoding lacks are escaped."""
    text = json.dumps(values, ensure_ascii=not sys.stdout.encoding.lower().startswith("utf"))
    click.echo(CONTROL.sub(lambda match: json.dumps(match[0])[1:-1], text))


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def print_table(table: Table) -> None:
    """Print a table."""
    print_text("\n".join(table_lines(table)))


def table_lines(table: Table) -> list[str]:
    """Format a table as aligned text; on a terminal its header is underlined and its heading rows are bold."""
    header, *rows = as_lines(table)
    if not is_terminal():
        return [header, *rows]
    marked = [click.style(row, bold=True) if i in table.headings else row for i, row in enumerate(rows)]
    return [click.style(header, underline=True), *marked]


def print_title(text: str) -> None:
    """Print a bold line and an empty one."""
    print_text(click.style(text, bold=True) + "\n")


def print_prose(markdown: str) -> None:
    """Print Markdown, with the texts of links and pictures in place of them."""
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    if not is_terminal():
        click.echo(plain)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    # Markdown would interpret the backslashes and underscores of LaTeX.
    blocks = re.sub(r"^\$\$\n(.*?)\n\$\$$", r"```latex\n\1\n```", plain, flags=re.MULTILINE | re.DOTALL)
    Console().print(Markdown(re.sub(r"\$([^$\n]+(?:\n[^$\n]+)?)\$", r"`\1`", blocks)))


def print_code(lines: tuple[str, ...], first_line: int) -> None:
    """Print Python code; on a terminal with colours and line numbers."""
    code = "\n".join(lines)
    if not is_terminal():
        click.echo(code)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    # The terminal's own palette is readable on any background.
    style: Any = {"theme": "ansi_dark", "background_color": "default"}
    Console().print(Syntax(code, "python", line_numbers=True, start_line=first_line, word_wrap=True, **style))
