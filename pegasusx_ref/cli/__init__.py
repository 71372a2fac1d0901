"""The command line: results on stdout, progress and messages on stderr; exit codes 0, 1 (a check failed), 2 (usage)."""

import click

import pegasusx_ref
from pegasusx_ref.cli.commands import Importable, MainGroup

COMMANDS = {
    "summarize": "pegasusx_ref.cli.summarize:summarize",
    "corpus": "pegasusx_ref.cli.corpus:corpus_command",
    "trace": "pegasusx_ref.cli.trace:trace",
    "explain": "pegasusx_ref.cli.explain:explain",
    "explore": "pegasusx_ref.cli.explore:explore",
    "picture": "pegasusx_ref.cli.picture:picture",
    "verify": "pegasusx_ref.cli.verify:verify_command",
    "verify-generation": "pegasusx_ref.cli.verify_generation:verify_generation_command",
    "vectors": "pegasusx_ref.cli.vectors:vectors_commands",
    "convert": "pegasusx_ref.cli.convert:convert_command",
    "finetune": "pegasusx_ref.cli.finetune:finetune_command",
    "backends": "pegasusx_ref.cli.backends:backends",
    "bench": "pegasusx_ref.cli.bench:bench_command",
}


@click.group(cls=MainGroup, commands=Importable(COMMANDS), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pegasusx_ref.__version__, prog_name="pegasusx-ref")
def main() -> None:
    """Run, study and verify PEGASUS-X with its golden NumPy reference."""
