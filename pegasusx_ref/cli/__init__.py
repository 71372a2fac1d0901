"""The command line: results on stdout, progress and messages on stderr; exit codes 0, 1 (a check failed), 2 (usage)."""

import click

import pegasusx_ref
from pegasusx_ref.cli.backends import backends
from pegasusx_ref.cli.bench import bench_command
from pegasusx_ref.cli.commands import MainGroup
from pegasusx_ref.cli.convert import convert_command
from pegasusx_ref.cli.corpus import corpus_command
from pegasusx_ref.cli.explain import explain
from pegasusx_ref.cli.explore import explore
from pegasusx_ref.cli.finetune import finetune_command
from pegasusx_ref.cli.picture import picture
from pegasusx_ref.cli.summarize import summarize
from pegasusx_ref.cli.trace import trace
from pegasusx_ref.cli.vectors import vectors_commands
from pegasusx_ref.cli.verify import verify_command
from pegasusx_ref.cli.verify_generation import verify_generation_command


@click.group(cls=MainGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pegasusx_ref.__version__, prog_name="pegasusx-ref")
def main() -> None:
    """Run, study and verify PEGASUS-X with its golden NumPy reference."""


for command in (
    summarize,
    corpus_command,
    trace,
    explain,
    explore,
    picture,
    verify_command,
    verify_generation_command,
    vectors_commands,
    convert_command,
    finetune_command,
    backends,
    bench_command,
):
    main.add_command(command)
