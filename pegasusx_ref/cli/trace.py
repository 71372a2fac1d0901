"""``pegasusx-ref trace``: a text's way through the model, tensor by tensor."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from pegasusx_ref.cli.messages import UsageError, note, plainly
from pegasusx_ref.cli.options import model_option
from pegasusx_ref.cli.outputs import writable
from pegasusx_ref.cli.printing import print_table
from pegasusx_ref.cli.progress import layer_progress
from pegasusx_ref.cli.summarize import note_dropped, read_document
from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.head import shift_tokens_right
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.rendering.tables import count, counted, dimensions, size
from pegasusx_ref.study.saving import TensorFile, layout_of, saving
from pegasusx_ref.study.step_table import as_dict, as_table, folded_name, rows_of
from pegasusx_ref.study.steps import Step, steps, steps_at
from pegasusx_ref.study.tensor_values import Pieces, attended, values
from pegasusx_ref.study.watching import Watch
from pegasusx_ref.summarization import SummarizationPipeline, pipeline
from pegasusx_ref.tracing import listen, record

QUERIES = 8  # of which it is told what they see, unless all are asked for


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@model_option
@click.option("--target", metavar="TEXT", help="What the decoder reads.  [default: the summary that the model writes]")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens of that summary at the most.")
@click.option("--at", "place", metavar="PLACE", help="Show the numbers there: encoder.layers.1.self_attn, lm_head, ….")
@click.option(
    "--save",
    "path",
    type=click.Path(path_type=Path),
    callback=writable,
    metavar="FILE",
    help="Write all tensors to a safetensors file, which pegasusx-ref verify --dump reads.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float64"]),
    help="What it computes in.",
)
@click.option("--all", "everything", is_flag=True, help="List every slice, tell of every query.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, with every slice.")
def trace(
    file: Path | None,
    folder: Path | None,
    target: str | None,
    max_new_tokens: int | None,
    place: str | None,
    path: Path | None,
    dtype: str,
    everything: bool,
    as_json: bool,
) -> None:
    """Show the way of a text through the model, of FILE or standard input.

    First the model writes its summary, as pegasusx-ref summarize does. Then encoder and decoder run once, the decoder
    over the start token and the summary (or the TEXT of --target), each of its rows predicting the token that follows.
    Of every tensor the table has shape, range, root mean square, the FLOPs of its matrix product, and bytes; of scores,
    masked ones are counted apart. The blocks of a layer are one line.
    """
    if place is not None and as_json:
        raise UsageError("--at shows numbers to a person: leave --json out, or take --save")
    with plainly():
        name, text = read_document(file or Path("-"))
        summarizer = pipeline("summarization", folder, dtype=dtype)
        model, tokenizer = summarizer.model, summarizer.tokenizer
        config = model.config
        source = source_ids(name, text, summarizer)
        T = source.shape[1]
        if place is not None:
            steps_at(place, steps(config, T, 1))  # a wrong place should not cost a summary
        with layer_progress(f"{name}: reading {counted(T, 'token')}, layer", config.encoder_layers):
            labels = target_ids(summarizer, source, target, max_new_tokens)
        shifted = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
        inputs = {"input_ids": source, "decoder_input_ids": shifted}
        run, watch, recorded = list(steps(config, T, shifted.shape[1])), Watch(), {}
        with ExitStack() as listeners:
            if path is not None:
                listeners.enter_context(listen(listeners.enter_context(written(path, inputs, run, dtype))))
            if place is not None:
                recorded = listeners.enter_context(record(place, f"{place}.*"))
            else:
                listeners.enter_context(listen(watch))
            layers = config.encoder_layers, config.decoder_layers
            listeners.enter_context(layer_progress(f"{name}: tracing, layer", *layers))
            model(source, decoder_input_ids=shifted)
    if place is not None:
        pieces = Pieces(*(tokenizer.convert_ids_to_tokens(ids[0]) for ids in inputs.values()))
        show_values(recorded, steps_at(place, run), config, pieces, everything)
        return
    rows = rows_of(run, watch.summaries, "nothing" if everything or as_json else "blocks")
    facts: dict[str, Any] = {
        "document": name,
        "num_source_tokens": T,
        "num_target_tokens": shifted.shape[1],
        "target": " ".join(tokenizer.decode(labels[0], skip_special_tokens=True).split()),
    }
    if as_json:
        click.echo(json.dumps(facts | {"steps": [as_dict(row, dtype) for row in rows]}, ensure_ascii=False))
        return
    print_table(as_table(rows, dtype))
    num_bytes = np.dtype(dtype).itemsize * sum(one.size for one in run)
    figures = f"{counted(len(run), 'tensor')} of {size(num_bytes)}, {count(sum(one.flops for one in run))} FLOPs"
    lengths = f"{counted(T, 'source token')}, {counted(shifted.shape[1], 'target token')}"
    click.echo(f"\n{lengths}: {figures}\ntarget: {facts['target']}")


def source_ids(name: str, text: str, summarizer: SummarizationPipeline) -> np.ndarray:
    """Turn a document into token ids (1, T), and note what is cut off."""
    batch = summarizer.encode(text)
    note_dropped(name, batch.num_truncated_tokens[0], summarizer.model.config.max_position_embeddings)
    ids: np.ndarray = batch["input_ids"]
    return ids


def target_ids(
    summarizer: SummarizationPipeline, source: np.ndarray, target: str | None, max_new_tokens: int | None
) -> np.ndarray:
    """Make the tokens that the decoder is to predict (1, L): those of a text, or of the model's summary.

    Args:
        summarizer: the model and its tokenizer.
        source: token ids (1, T).
        target: the text; the model writes one where it is None.
        max_new_tokens: of that.

    Raises:
        InputError: the text is empty.
    """
    if target is None:
        ids: np.ndarray = summarizer.model.generate(source, num_return_sequences=1, max_new_tokens=max_new_tokens)
        return ids[:, 1:]  # without the start token
    if not target.strip():
        raise InputError("--target is empty: the decoder needs a text, or leave it out for the model's summary")
    return np.array([summarizer.tokenizer.encode(target)])


@contextmanager
def written(path: Path, inputs: dict[str, np.ndarray], run: list[Step], dtype: str) -> Iterator[TensorFile]:
    """Write ids at once, and every tensor as it is made; say how large the file gets.

    Args:
        path: the file.
        inputs: ids by name.
        run: the steps.
        dtype: of their tensors.

    Raises:
        UsageError: there is no room for it, or it cannot be written.
    """
    shapes = {name: (ids.shape, ids.dtype.name) for name, ids in inputs.items()}
    layout = layout_of(shapes | {one.name: (one.shape, dtype) for one in run})
    if layout.size > (free := shutil.disk_usage(path.absolute().parent).free):
        raise UsageError(f"--save {path} takes {size(layout.size)}, but {size(free)} are free: take a shorter text")
    note(f"{path}: {len(layout.starts)} tensors, {size(layout.size)}")
    try:
        with saving(path, layout) as tensors:
            for name, ids in inputs.items():
                tensors(name, ids)
            yield tensors
    except OSError as error:
        raise UsageError(f"--save {path}: {error.strerror or error}") from None


def show_values(
    recorded: dict[str, np.ndarray], chosen: list[Step], config: PegasusXConfig, pieces: Pieces, everything: bool
) -> None:
    """Print the numbers of tensors, and of attention what sees what; of a layer's blocks the first one.

    Args:
        recorded: tensors by name.
        chosen: the steps that made them.
        config: the model's configuration.
        pieces: the tokens.
        everything: all blocks and all queries.
    """
    groups: dict[str, list[Step]] = {}
    for one in chosen:
        groups.setdefault(one.name if everything else folded_name(one.name, "blocks"), []).append(one)
    for folded, (first, *others) in groups.items():
        tensor = recorded[first.name]
        more = f"   ({len(others)} more {folded}: --all)" if others else ""
        click.echo(
            click.style(f"{first.name}  {dimensions(first.letters, first.shape)}  {tensor.dtype}", bold=True) + more
        )
        click.echo(values(tensor))
        if first.name.endswith((".scores", ".probs")):
            limit = tensor.shape[2] if everything else QUERIES
            click.echo("\n".join(attended(first.name, tensor, config, pieces, limit)))
        click.echo()
