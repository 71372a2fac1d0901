"""Tables and prose on stdout: with rich on a terminal, plain where they are piped."""

import re
import sys
from typing import Any

import click

from pegasusx_ref.rendering.tables import Table, as_lines


def is_terminal() -> bool:
    """Tell whether a person reads along."""
    return sys.stdout.isatty()


def print_table(table: Table) -> None:
    """Print a table."""
    click.echo("\n".join(table_lines(table)))


def table_lines(table: Table) -> list[str]:
    """Write a table as aligned text, on a terminal with marks for the header and what stands above other rows."""
    header, *rows = as_lines(table)
    if not is_terminal():
        return [header, *rows]
    marked = [click.style(row, bold=True) if i in table.headings else row for i, row in enumerate(rows)]
    return [click.style(header, underline=True), *marked]


def print_prose(markdown: str) -> None:
    """Print what is written in Markdown, links and pictures as their words."""
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    if not is_terminal():
        click.echo(plain)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    # Markdown knows no LaTeX and would take its backslashes and underscores for its own.
    blocks = re.sub(r"^\$\$\n(.*?)\n\$\$$", r"```latex\n\1\n```", plain, flags=re.MULTILINE | re.DOTALL)
    Console().print(Markdown(re.sub(r"\$([^$\n]+(?:\n[^$\n]+)?)\$", r"`\1`", blocks)))


def print_code(lines: tuple[str, ...], first_line: int) -> None:
    """Print Python code; on a terminal in colours and with the numbers of the lines."""
    if not is_terminal():
        click.echo("\n".join(lines))
        return
    from rich.console import Console
    from rich.syntax import Syntax

    code = "\n".join(lines)
    # Colours of the terminal's own palette can be read on any background.
    style: Any = {"theme": "ansi_dark", "background_color": "default"}
    Console().print(Syntax(code, "python", line_numbers=True, start_line=first_line, word_wrap=True, **style))
