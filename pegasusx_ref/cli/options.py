"""Options that several commands have."""

from pathlib import Path

import click

model_option = click.option(
    "--model", "folder", type=click.Path(path_type=Path), help="Checkpoint folder.  [default: a small demo]"
)
progress_option = click.option(
    "--progress/--no-progress", "shown", default=True, help="Show progress on stderr.  [default: yes]"
)
