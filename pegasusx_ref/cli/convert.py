"""``pegasusx-ref convert``: a checkpoint of any kind as a folder that transformers reads."""

from pathlib import Path

import click

from pegasusx_ref.backend.quantized import KINDS
from pegasusx_ref.checkpoint.hub import is_hub_name
from pegasusx_ref.cli.commands import INPUT_FILE, Command, InputFolder, OutputFolder
from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.cli.options import progress_option, revision_option
from pegasusx_ref.cli.printing import print_text
from pegasusx_ref.conversion import convert
from pegasusx_ref.conversion.casting import DTYPES


@click.command("convert", cls=Command)
@click.argument("source", type=InputFolder())
@click.argument("destination", type=OutputFolder())
@click.option("--dtype", type=click.Choice(DTYPES), help="Dtype of the weights.  [default: as they are]")
@click.option("--quantize", type=click.Choice(KINDS), help="Quantize the linear layers, as bitsandbytes stores them.")
@click.option("--quantize-embedding", is_flag=True, help="Quantize the tables too; transformers does not read them.")
@click.option(
    "--max-shard-size",
    default="5GB",
    show_default=True,
    metavar="SIZE",
    help="Maximum size of a weight file: 500MiB, ….",
)
@click.option(
    "--tokenizer",
    type=InputFolder(),
    metavar="PATH",
    help="spiece.model, or folder or Hub name of a tokenizer.  [default: SOURCE's]",
)
@click.option(
    "--config",
    type=INPUT_FILE,
    metavar="FILE|PRESET",
    help="For a Flax SOURCE: block size, activation and the like, as a config.json or preset.  [default: as published]",
)
@revision_option
@progress_option
def convert_command(
    source: Path,
    destination: Path,
    dtype: str | None,
    quantize: str | None,
    quantize_embedding: bool,
    max_shard_size: str,
    tokenizer: Path | None,
    config: Path | None,
    revision: str | None,
    shown: bool,
) -> None:
    """Convert the checkpoint SOURCE to the folder DESTINATION, which transformers reads too.

    SOURCE is a folder of safetensors or torch files, a LoRA adapter, which is merged, a name of the Hugging Face Hub,
    or a Flax checkpoint of the paper's own code. DESTINATION may be SOURCE; weights of an earlier save in it are
    replaced. A quantized SOURCE stays quantized; --dtype without --quantize dequantizes it. Prints the files that it
    wrote.
    """
    if revision is not None and not is_hub_name(source):
        raise UsageError(f"--revision {revision} is for a SOURCE of the Hugging Face Hub: omit it for a folder")
    for path in convert(
        source,
        destination,
        dtype,
        max_shard_size,
        quantize=quantize,
        quantize_embedding=quantize_embedding,
        config=config,
        tokenizer=tokenizer,
        revision=revision,
    ):
        print_text(str(path))
