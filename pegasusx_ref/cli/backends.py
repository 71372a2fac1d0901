"""``pegasusx-ref backends``: the installed backends, or the reason why one cannot run here."""

import click

from pegasusx_ref.backend.registry import available_backends
from pegasusx_ref.cli.commands import Command
from pegasusx_ref.cli.options import json_option
from pegasusx_ref.cli.printing import print_json, print_table
from pegasusx_ref.rendering.tables import Table


@click.command(cls=Command)
@json_option
def backends(as_json: bool) -> None:
    """List the installed backends, or why one cannot run here."""
    found = available_backends()
    if as_json:
        print_json({name: info._asdict() for name, info in found.items()})
        return
    rows = [
        (name, info.version or "-", ", ".join(info.dtypes), ", ".join(info.devices))
        if info.problem is None
        else (name, info.version or "-", "-", f"cannot run: {info.problem}")
        for name, info in found.items()
    ]
    print_table(Table(("backend", "version", "dtypes", "devices"), rows, left=4))
