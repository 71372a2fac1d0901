"""``pegasusx-ref backends``: which there are, and what keeps one from running."""

import json

import click

from pegasusx_ref.backend.registry import available_backends
from pegasusx_ref.cli.messages import plainly


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def backends(as_json: bool) -> None:
    """List the installed backends with version, devices and dtypes, or the reason why one cannot run here."""
    with plainly():
        found = available_backends()
    if as_json:
        click.echo(json.dumps({name: info._asdict() for name, info in found.items()}))
        return
    rows = [("backend", "version", "devices", "dtypes")]
    for name, info in found.items():
        devices = ", ".join(info.devices) if info.problem is None else f"cannot run: {info.problem}"
        rows.append((name, info.version or "-", devices, ", ".join(info.dtypes) if info.problem is None else ""))
    widths = [max(len(row[i]) for row in rows if row[3]) for i in range(3)]
    for row in rows:
        click.echo(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]).rstrip()
        )
