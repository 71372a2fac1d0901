"""``pegasusx-ref picture``: what a layer sees, how far a token is heard, what attention does, as an image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from pegasusx_ref.cli.messages import UsageError, plainly
from pegasusx_ref.cli.outputs import writable
from pegasusx_ref.cli.summarize import note_dropped, read_document
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.model.config import PRESETS, PegasusXConfig
from pegasusx_ref.study import pictures
from pegasusx_ref.study.pictures import looks
from pegasusx_ref.study.pictures.words import by_word
from pegasusx_ref.summarization import SummarizationPipeline, pipeline

DPI = 150
Command = Callable[..., None]


@click.group()
def picture() -> None:
    """Draw a picture; needs matplotlib: pip install 'pegasusx-ref[study]'."""


def option_model(command: Command) -> Command:
    """Add the option that names a checkpoint."""
    kind: Any = click.Path(path_type=Path)
    text = "Checkpoint folder.  [default: a small demo]"
    return click.option("--model", "folder", type=kind, default=DEMO_CHECKPOINT, help=text)(command)


def option_preset(command: Command) -> Command:
    """Add the option that names a published shape, for pictures that need no weights."""
    return click.option("--preset", type=click.Choice(list(PRESETS)), help="A shape instead of a model.")(command)


def option_out(command: Command) -> Command:
    """Add the option that says where the picture goes."""
    kind: Any = click.Path(path_type=Path, dir_okay=False)
    text = "Where to: a .png, .svg or .pdf."
    return click.option("--out", type=kind, required=True, callback=writable, metavar="FILE", help=text)(command)


def config_of(folder: Path, preset: str | None) -> PegasusXConfig:
    """Take the shape of a preset, or of a checkpoint where none is named.

    Raises:
        UsageError: both are.
    """
    if preset and folder != DEMO_CHECKPOINT:
        raise UsageError(f"--preset {preset} and --model {folder}: a picture is of one shape")
    return PegasusXConfig.preset(preset) if preset else PegasusXConfig.from_pretrained(folder)


def ids_of(file: Path, summarizer: SummarizationPipeline) -> Any:
    """Read a document as token ids (1, T), cut to the model's length with a note that says so."""
    name, text = read_document(file)
    batch = summarizer.encode([text])
    note_dropped(name, batch.num_truncated_tokens[0], summarizer.model.config.max_position_embeddings)
    return batch.input_ids


def save(figure: Any, out: Path, option: str = "--out") -> None:
    """Write a figure in the format that the file's name asks for.

    Raises:
        UsageError: there is no such format, or the file cannot be written any more.
    """
    check_format(figure, out, option)
    try:
        figure.savefig(out, dpi=DPI)
    except OSError as error:
        raise UsageError(f"{option} {out}: {error.strerror or error}") from None


def check_format(figure: Any, out: Path, option: str = "--out") -> None:
    """See whether figures can be written in the format that a file's name asks for.

    Raises:
        UsageError: there is no such format.
    """
    if out.suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{option} {out}: {out.suffix!r} is no format of pictures, take .png, .svg or .pdf")


@picture.command("index-map")
@option_model
@option_preset
@click.option("--tokens", default=100, show_default=True, type=click.IntRange(min=1), help="Length of the text.")
@click.option(
    "--padding", default=0, show_default=True, type=click.IntRange(min=0), help="How many of them are padding."
)
@click.option("--layer", default=0, show_default=True, type=click.IntRange(min=0), help="Of the encoder.")
@option_out
def index_map(folder: Path, preset: str | None, tokens: int, padding: int, layer: int, out: Path) -> None:
    """Which keys each query of an encoder layer sees."""
    with plainly():
        if padding >= tokens:
            raise UsageError(f"--padding {padding} leaves no token of {tokens}")
        key_mask = np.arange(tokens) < tokens - padding if padding else None
        save(pictures.index_map(config_of(folder, preset), tokens, layer, key_mask), out)


@picture.command("spread")
@option_model
@option_preset
@click.option("--tokens", default=200, show_default=True, type=click.IntRange(min=1), help="Length of the text.")
@click.option("--token", type=click.IntRange(min=0), help="Where it starts.  [default: in the middle]")
@option_out
def spread(folder: Path, preset: str | None, tokens: int, token: int | None, out: Path) -> None:
    """How far what one token says has got after each encoder layer."""
    with plainly():
        save(pictures.spread(config_of(folder, preset), tokens, tokens // 2 if token is None else token), out)


@picture.command("attention")
@click.argument("file", type=click.Path(path_type=Path))
@option_model
@click.option("--layer", default=0, show_default=True, type=click.IntRange(min=0), help="Of the encoder.")
@click.option("--head", type=click.IntRange(min=0), help="Which one.  [default: the mean of all]")
@option_out
def attention(file: Path, folder: Path, layer: int, head: int | None, out: Path) -> None:
    """What the tokens of a text attend to in an encoder layer; FILE may be "-"."""
    with plainly():
        summarizer = pipeline("summarization", folder)
        ids = ids_of(file, summarizer)
        probs, blocks = looks.local_attention_of(summarizer.model, ids, layer)
        save(pictures.attention_in_blocks(probs, blocks, head), out)


@picture.command("cross-attention")
@click.argument("file", type=click.Path(path_type=Path))
@option_model
@click.option("--layer", type=click.IntRange(min=0), help="Of the decoder.  [default: the last]")
@click.option("--head", type=click.IntRange(min=0), help="Which one.  [default: the mean of all]")
@option_out
def cross_attention(file: Path, folder: Path, layer: int | None, head: int | None, out: Path) -> None:
    """Where the decoder looks in a text for each word of its summary; FILE may be "-"."""
    with plainly():
        summarizer = pipeline("summarization", folder)
        model, name_of = summarizer.model, summarizer.tokenizer.convert_ids_to_tokens
        ids = ids_of(file, summarizer)
        written = model.generate(ids)
        layer = model.config.decoder_layers - 1 if layer is None else layer
        probs = looks.cross_attention_of(model, ids, written, layer, head)
        rows, words = by_word(probs, name_of(written[0, 1:].tolist()))
        save(pictures.cross_attention(rows, name_of(ids[0].tolist()), words), out)
