"""``pegasusx-ref picture``: index maps, one token's reach, and attention as images."""

from pathlib import Path
from typing import Any

import click
import numpy as np

from pegasusx_ref.cli import options
from pegasusx_ref.cli.commands import INPUT_FILE, Group
from pegasusx_ref.cli.documents import read_document
from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.cli.output_files import save_figure
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.model.config import PRESETS, PegasusXConfig
from pegasusx_ref.study import pictures
from pegasusx_ref.study.pictures.attention_probabilities import (
    average_by_word,
    cross_attention_probs,
    local_attention_probs,
)
from pegasusx_ref.summarization import SummarizationPipeline, pipeline

preset_option = click.option("--preset", type=click.Choice(list(PRESETS)), help="Published shape, instead of --model.")
document_argument = click.argument("file", type=INPUT_FILE)


@click.group(cls=Group)
def picture() -> None:
    """Draw a picture of attention.

    This needs matplotlib: pip install 'pegasusx-ref[study]'.
    """


def config_of(preset: str | None, folder: Path | None, revision: str | None) -> PegasusXConfig:
    """Return the configuration of a preset or of a checkpoint.

    Raises:
        UsageError: both are given.
    """
    if preset and folder:
        raise UsageError(f"--preset {preset} and --model {folder} exclude each other")
    hub = options.hub_options(folder, revision)
    return PegasusXConfig.preset(preset) if preset else PegasusXConfig.from_pretrained(folder or DEMO_CHECKPOINT, **hub)


def encoded(file: Path, folder: Path | None, revision: str | None) -> tuple[SummarizationPipeline, np.ndarray]:
    """Load a model and encode a document as token ids (1, T)."""
    summarizer = pipeline("summarization", folder or DEMO_CHECKPOINT, **options.hub_options(folder, revision))
    name, text = read_document(file)
    return summarizer, summarizer.encode([text], names=[name]).input_ids


@picture.command("index-map")
@options.model_option
@options.revision_option
@preset_option
@click.option("--tokens", default=100, show_default=True, type=options.POSITIVE, help="Length of the text.")
@click.option("--padding", default=0, show_default=True, type=options.NOT_NEGATIVE, help="Padding tokens at its end.")
@options.encoder_layer_option
@options.picture_option
def index_map(preset: str | None, tokens: int, padding: int, layer: int, out: Path, **checkpoint: Any) -> None:
    """Draw the keys that each query of a layer attends to."""
    if padding >= tokens:
        raise UsageError(f"--padding {padding} must be less than --tokens {tokens}")
    key_mask = np.arange(tokens) < tokens - padding if padding else None
    save_figure(pictures.index_map(config_of(preset, **checkpoint), tokens, layer, key_mask), out)


@picture.command("spread")
@options.model_option
@options.revision_option
@preset_option
@click.option("--tokens", default=200, show_default=True, type=options.POSITIVE, help="Length of the text.")
@click.option("--token", type=options.NOT_NEGATIVE, help="Position of the token, from 0.  [default: the middle]")
@options.picture_option
def spread(preset: str | None, tokens: int, token: int | None, out: Path, **checkpoint: Any) -> None:
    """Draw one token's reach, encoder layer by layer."""
    token = tokens // 2 if token is None else token
    save_figure(pictures.spread(config_of(preset, **checkpoint), tokens, token), out)


@picture.command("attention")
@document_argument
@options.model_option
@options.revision_option
@options.encoder_layer_option
@options.head_option
@options.picture_option
def attention(file: Path, layer: int, head: int | None, out: Path, **checkpoint: Any) -> None:
    """Draw the local attention of an encoder layer.

    FILE is a text; "-" reads standard input.
    """
    summarizer, ids = encoded(file, **checkpoint)
    probs, blocks = local_attention_probs(summarizer.model, ids, layer)
    save_figure(pictures.attention_in_blocks(probs, blocks, head), out)


@picture.command("cross-attention")
@document_argument
@options.model_option
@options.revision_option
@click.option("--layer", type=options.NOT_NEGATIVE, help="Decoder layer, from 0.  [default: the last]")
@options.head_option
@options.picture_option
def cross_attention(file: Path, layer: int | None, head: int | None, out: Path, **checkpoint: Any) -> None:
    """Draw the cross-attention of each summary word.

    FILE is a text; "-" reads standard input.
    """
    summarizer, ids = encoded(file, **checkpoint)
    model, tokens_of = summarizer.model, summarizer.tokenizer.convert_ids_to_tokens
    written = model.generate(ids)
    layer = model.config.decoder_layers - 1 if layer is None else layer
    probs = cross_attention_probs(model, ids, written, layer, head)
    rows, words = average_by_word(probs, tokens_of(written[0, 1:].tolist()))
    save_figure(pictures.cross_attention(rows, tokens_of(ids[0].tolist()), words), out)
