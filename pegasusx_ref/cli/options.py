"""Arguments and options that several commands have."""

import click

from pegasusx_ref.cli.commands import INPUT_FILE, MODEL_FOLDER, OUTPUT_FILE

POSITIVE = click.IntRange(min=1)
NOT_NEGATIVE = click.IntRange(min=0)

file_argument = click.argument("file", default="-", type=INPUT_FILE, metavar="[FILE]")
model_option = click.option(
    "--model", "folder", type=MODEL_FOLDER, help="Checkpoint folder.  [default: embedded checkpoint]"
)
max_new_tokens_option = click.option("--max-new-tokens", type=POSITIVE, help="Maximum length of the summary in tokens.")
num_beams_option = click.option("--num-beams", type=POSITIVE, help="Number of beams; 1 is greedy search.")
head_option = click.option("--head", type=NOT_NEGATIVE, help="Attention head, from 0.  [default: the mean of all]")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
progress_option = click.option(
    "--progress/--no-progress", "shown", default=True, help="Show progress on stderr.  [default: progress]"
)
picture_option = click.option(
    "--out", type=OUTPUT_FILE, required=True, metavar="FILE", help="Output file: .png, .svg or .pdf."
)
encoder_layer_option = click.option(
    "--layer", default=0, show_default=True, type=NOT_NEGATIVE, help="Encoder layer, from 0."
)
