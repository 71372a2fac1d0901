"""``pegasusx-ref vectors``: write conformance vectors for implementations in any language, and check tensors by one."""

from pathlib import Path

import click

from pegasusx_ref.cli.commands import INPUT_FILE, Group, InputFolder, OutputFolder
from pegasusx_ref.cli.messages import UsageError, message
from pegasusx_ref.cli.options import json_option, progress_option
from pegasusx_ref.cli.printing import print_text
from pegasusx_ref.cli.verification_options import (
    all_option,
    arithmetic_option,
    html_option,
    junit_option,
    known_option,
    map_option,
    read_lists,
    show_report,
    strict_option,
)
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification import from_dump
from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.vectors import VECTORS, check_vector, read_vector, write_vectors


@click.group("vectors", cls=Group)
def vectors_commands() -> None:
    """Write conformance vectors, or check an implementation's tensors by one.

    A vector is a folder with the weights and inputs of a small model, every intermediate tensor in float64, and a
    manifest with tolerances. spec/vectors/README.md explains how to use vectors from C++ or Rust.
    """


@vectors_commands.command("write", context_settings={"allow_extra_args": True})
@click.argument("folder", type=OutputFolder())
@click.option("--preset", "names", multiple=True, type=click.Choice(list(VECTORS)), help="One vector; may be repeated.")
@progress_option
def write_command(folder: Path, names: tuple[str, ...], shown: bool) -> None:
    """Write conformance vectors into FOLDER, each into its own folder; without --preset, all of them.

    Prints the folders that it wrote.
    """
    if more := click.get_current_context().args:
        raise UsageError(f"{more[0]} is not expected behind {folder}: name a vector by --preset {more[0]}")
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
@map_option
@arithmetic_option("--arithmetic")
@known_option
@strict_option
@all_option
@json_option
@html_option
@junit_option
def check_command(
    folder: Path,
    file: Path,
    mapping: Path | None,
    arithmetic: Arithmetic,
    known: tuple[Path, ...],
    strict: bool,
    everything: bool,
    as_json: bool,
    html: Path | None,
    junit: Path | None,
) -> None:
    """Check the tensors of an implementation that ran the vector in FOLDER.

    The dump contains any number of tensors, by trace-point name or by names that --map maps. The tensors that fail are
    listed in the order of execution. If the vector has gradients and the dump holds some, under the names of trace
    points and weights with .grad behind, the backward pass is checked too. The exit code is 0 if no tensor fails, known
    differences apart; 1 if one does, or with --strict if the dump does not hold exactly the vector's tensors.
    """
    vector = read_vector(folder)
    config = PegasusXConfig.from_dict(vector.manifest["config"])
    report = check_vector(vector, from_dump(file, mapping, config, vector.inputs), arithmetic, read_lists(known))
    subject = f"{file.name} in {arithmetic.name}, vector {folder.resolve().name}"
    raise SystemExit(show_report(report, subject, strict, everything, as_json, html, junit))
