"""``pegasusx-ref vectors``: conformance vectors for implementations in any language, and the check of one."""

import json
from pathlib import Path

import click

from pegasusx_ref.cli.messages import plainly
from pegasusx_ref.cli.options import progress_option
from pegasusx_ref.verification import from_dump
from pegasusx_ref.verification.arithmetic import ARITHMETICS
from pegasusx_ref.verification.reports import as_dict, as_text
from pegasusx_ref.verification.vectors import CASES, check_vector, read_vector, write_vectors


@click.group("vectors")
def vectors_commands() -> None:
    """Write conformance vectors, or check an implementation's tensors by one.

    A vector is a folder: weights and inputs of a small model, every intermediate tensor in float64, and a manifest with
    tolerances. spec/vectors/README.md says how to use them from C++ or Rust.
    """


@vectors_commands.command("write")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--preset", "names", multiple=True, type=click.Choice(list(CASES)), help="One of them; may be repeated.")
@progress_option
def write_command(folder: Path, names: tuple[str, ...], shown: bool) -> None:
    """Write conformance vectors into FOLDER, one folder each; all of them where no --preset is given.

    Prints the folders that it wrote.
    """
    with plainly():
        write_vectors(folder, [])  # before anything long
        for name in names or CASES:
            if shown:
                click.echo(f"{name}: {CASES[name].about}", err=True)
            for written in write_vectors(folder, [name]):
                click.echo(written)


@vectors_commands.command("check")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dump", "file", required=True, type=click.Path(path_type=Path), help="The tensors: safetensors or npz.")
@click.option(
    "--arithmetic",
    default="float32",
    show_default=True,
    type=click.Choice(list(ARITHMETICS)),
    help="What the implementation computes in.",
)
@click.option("--all", "everything", is_flag=True, help="List the tensors that pass too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def check_command(folder: Path, file: Path, arithmetic: str, everything: bool, as_json: bool) -> None:
    """Check the tensors of an implementation that ran the vector in FOLDER.

    The dump holds tensors by trace-point name, as many as there are. Lists those that fail, in the order of execution.
    Exits with 0 where none does, 1 where one does.
    """
    with plainly():
        report = check_vector(read_vector(folder), from_dump(file), arithmetic)
    if as_json:
        click.echo(json.dumps(as_dict(report)))
    else:
        click.echo(as_text(report, everything))
    raise SystemExit(0 if report.passed else 1)
