"""Arguments and options that several commands have."""

import os
from pathlib import Path

import click

from pegasusx_ref.backend.quantized import KINDS
from pegasusx_ref.backend.registry import backend_names
from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.cli.commands import INPUT_FILE, MODEL_FOLDER, OUTPUT_FILE
from pegasusx_ref.cli.messages import UsageError

POSITIVE = click.IntRange(min=1)
NOT_NEGATIVE = click.IntRange(min=0)


def hide_downloads(context: click.Context, _option: click.Parameter, shown: bool) -> bool:
    """Without progress, hide huggingface_hub's bars too: it reads this variable when it is imported."""
    if not shown and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        context.call_on_close(lambda: os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None))
    return shown


def device_or_index(_context: click.Context, _option: click.Parameter, device: str | None) -> str | int | None:
    """Convert digits to a device index."""
    return int(device) if device is not None and device.isdecimal() else device


def hub_options(folder: Path | None, revision: str | None) -> HubOptions:
    """Return how --model is looked up in the Hub.

    Raises:
        UsageError: --revision was given for a folder.
    """
    if revision is not None and (folder is None or folder.is_dir()):
        raise UsageError(f"--revision {revision} is for a --model of the Hugging Face Hub: omit it for a folder")
    return {"revision": revision}


MODEL_HELP = "Checkpoint folder, or owner/name of the Hugging Face Hub"

file_argument = click.argument("file", default="-", type=INPUT_FILE, metavar="[FILE]")
model_option = click.option(
    "--model", "folder", type=MODEL_FOLDER, help=f"{MODEL_HELP}.  [default: embedded checkpoint]"
)
revision_option = click.option("--revision", metavar="NAME", help="Branch, tag or commit of a model of the Hub.")
device_option = click.option(
    "--device", callback=device_or_index, help="Device: cpu, cuda:0, 0.  [default: the backend's first]"
)
max_new_tokens_option = click.option("--max-new-tokens", type=POSITIVE, help="Maximum length of the summary in tokens.")
backend_option = click.option(
    "--backend", default="numpy", show_default=True, help=f"Backend: {', '.join(backend_names())}."
)
dtype_option = click.option(
    "--dtype", default="float32", show_default=True, help="Dtype of the computation: float32, float64, …."
)
length_penalty_option = click.option(
    "--length-penalty", type=float, help="Beam search: values above 0 favour long summaries."
)
min_length_option = click.option(
    "--min-length", type=NOT_NEGATIVE, help="Minimum length in tokens, including the start token."
)
num_beams_option = click.option("--num-beams", type=POSITIVE, help="Number of beams; 1 is greedy search.")
head_option = click.option("--head", type=NOT_NEGATIVE, help="Attention head, from 0.  [default: the mean of all]")
quantization_option = click.option(
    "--quantization", type=click.Choice(KINDS), help="Quantize the linear layers on load.  [default: as they are]"
)
quantize_embedding_option = click.option(
    "--quantize-embedding", is_flag=True, help="Quantize the embedding tables too."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
progress_option = click.option(
    "--progress/--no-progress",
    "shown",
    default=True,
    callback=hide_downloads,
    help="Show progress on stderr.  [default: progress]",
)
picture_option = click.option(
    "--out", type=OUTPUT_FILE, required=True, metavar="FILE", help="Output file: .png, .svg or .pdf."
)
encoder_layer_option = click.option(
    "--layer", default=0, show_default=True, type=NOT_NEGATIVE, help="Encoder layer, from 0."
)
