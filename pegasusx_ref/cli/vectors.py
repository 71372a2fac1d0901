"""``pegasusx-ref vectors``: write conformance vectors for implementations in any language, and check tensors by one."""

from pathlib import Path

import click

from pegasusx_ref.cli.commands import INPUT_FILE, Group, InputFolder, OutputFolder
from pegasusx_ref.cli.messages import message
from pegasusx_ref.cli.options import json_option, progress_option
from pegasusx_ref.cli.printing import print_json, print_text
from pegasusx_ref.verification import from_dump
from pegasusx_ref.verification.error_bounds import ARITHMETICS
from pegasusx_ref.verification.reports import as_dict, as_text
from pegasusx_ref.verification.vectors import VECTORS, check_vector, read_vector, write_vectors


@click.group("vectors", cls=Group)
def vectors_commands() -> None:
    """Write conformance vectors, or check an implementation's tensors by one.

    A vector is a folder with the weights and inputs of a small model, every intermediate tensor in float64, and a
    manifest with tolerances. spec/vectors/README.md explains how to use vectors from C++ or Rust.
    """


@vectors_commands.command("write")
@click.argument("folder", type=OutputFolder())
@click.option("--preset", "names", multiple=True, type=click.Choice(list(VECTORS)), help="One vector; may be repeated.")
@progress_option
def write_command(folder: Path, names: tuple[str, ...], shown: bool) -> None:
    """Write conformance vectors into FOLDER, each into its own folder; without --preset, all of them.

    Prints the folders that it wrote.
    """
    write_vectors(folder, [])  # report a wrong folder before any computation
    for name in names or VECTORS:
        if shown:
            message(f"{name}: {VECTORS[name]}")
        for written in write_vectors(folder, [name]):
            print_text(str(written))


@vectors_commands.command("check")
@click.argument("folder", type=InputFolder())
@click.option(
    "--dump", "file", required=True, type=INPUT_FILE, help="The implementation's tensors: a safetensors or npz file."
)
@click.option(
    "--arithmetic",
    default="float32",
    show_default=True,
    type=click.Choice(list(ARITHMETICS)),
    help="What the implementation computes in.",
)
@click.option("--all", "everything", is_flag=True, help="List the tensors that pass too.")
@json_option
def check_command(folder: Path, file: Path, arithmetic: str, everything: bool, as_json: bool) -> None:
    """Check the tensors of an implementation that ran the vector in FOLDER.

    The dump contains any number of tensors, by trace-point name. The tensors that fail are listed in the order of
    execution. The exit code is 0 if no tensor fails, 1 if one does.
    """
    report = check_vector(read_vector(folder), from_dump(file), arithmetic)
    if as_json:
        print_json(as_dict(report))
    else:
        print_text(as_text(report, everything))
    raise SystemExit(0 if report.passed else 1)
