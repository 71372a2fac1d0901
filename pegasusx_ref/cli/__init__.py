"""The command line: results on stdout, progress and messages on stderr, exit codes 0, 1 (a check failed) and 2."""

import click

import pegasusx_ref
from pegasusx_ref.cli.backends import backends
from pegasusx_ref.cli.bench import bench_command
from pegasusx_ref.cli.explain import explain
from pegasusx_ref.cli.explore import explore
from pegasusx_ref.cli.picture import picture
from pegasusx_ref.cli.summarize import summarize
from pegasusx_ref.cli.trace import trace
from pegasusx_ref.cli.vectors import vectors_commands
from pegasusx_ref.cli.verify import verify_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pegasusx_ref.__version__, prog_name="pegasusx-ref")
def main() -> None:
    """Run PEGASUS-X as its golden reference: every layer in plain NumPy."""


main.add_command(summarize)
main.add_command(trace)
main.add_command(explain)
main.add_command(explore)
main.add_command(picture)
main.add_command(verify_command)
main.add_command(vectors_commands)
main.add_command(backends)
main.add_command(bench_command)
