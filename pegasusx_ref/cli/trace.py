"""``pegasusx-ref trace``: every tensor of a text's run through the model."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from pegasusx_ref.checkpoint.safetensors_writer import TensorWriter, file_layout, safetensors_writer
from pegasusx_ref.cli.commands import OUTPUT_FILE, Command
from pegasusx_ref.cli.documents import read_document
from pegasusx_ref.cli.messages import UsageError, note
from pegasusx_ref.cli.options import (
    file_argument,
    hub_options,
    json_option,
    max_new_tokens_option,
    model_option,
    quantization_option,
    quantize_embedding_option,
    revision_option,
)
from pegasusx_ref.cli.printing import print_json, print_table, print_text
from pegasusx_ref.cli.progress import layer_progress
from pegasusx_ref.errors import NumericsError
from pegasusx_ref.golden.head import shift_tokens_right
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.rendering.tables import count, counted, dimensions, size
from pegasusx_ref.study.shape_inference import Step, steps, steps_at
from pegasusx_ref.study.step_table import as_dict, as_table, folded_name, table_rows
from pegasusx_ref.study.tensor_statistics import StatisticsListener
from pegasusx_ref.study.tensor_values import Pieces, attention_lines, format_values
from pegasusx_ref.summarization import SummarizationPipeline, pipeline
from pegasusx_ref.tracing import listen, record

NUM_QUERIES = 8  # listed of an attention, without --all


@click.command(cls=Command)
@file_argument
@model_option
@revision_option
@click.option("--target", metavar="TEXT", help="Target text of the decoder.  [default: the model's summary]")
@max_new_tokens_option
@click.option("--at", "place", metavar="PLACE", help="Show the values at a place: encoder.layers.1.self_attn, ….")
@click.option(
    "--save",
    "path",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="Write all tensors to a safetensors file for pegasusx-ref verify --dump.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float64"]),
    help="Dtype of the computation.",
)
@quantization_option
@quantize_embedding_option
@click.option("--all", "everything", is_flag=True, help="List every block and, with --at, every query.")
@json_option
def trace(
    file: Path,
    folder: Path | None,
    revision: str | None,
    target: str | None,
    max_new_tokens: int | None,
    place: str | None,
    path: Path | None,
    dtype: str,
    quantization: str | None,
    quantize_embedding: bool,
    everything: bool,
    as_json: bool,
) -> None:
    """Trace a text through the model, tensor by tensor.

    The text is FILE or standard input. First the model writes its summary, as pegasusx-ref summarize does. Then encoder
    and decoder run once: the decoder reads the start token and the summary (or the TEXT of --target), and each of its
    rows predicts the next token. The table lists shape, range, root mean square (RMS), FLOPs of matrix products and
    bytes of every tensor; masked scores are counted and excluded from range and RMS. The blocks of a layer share one
    row; --json lists every block.
    """
    if place is not None and as_json:
        raise UsageError("--at and --json exclude each other: use --save for the values of all tensors")
    name, text = read_document(file)
    summarizer = pipeline(
        "summarization",
        folder,
        dtype=dtype,
        quantization=quantization,
        quantize_embedding=quantize_embedding,
        **hub_options(folder, revision),
    )
    model, tokenizer, config = summarizer.model, summarizer.tokenizer, summarizer.model.config
    source: np.ndarray = summarizer.encode([text], names=[name]).input_ids
    T = source.shape[1]
    if place is not None:
        steps_at(place, steps(config, T, 1))  # rejects an unknown place before the model writes a summary
    with layer_progress(f"{name}: reading {counted(T, 'token')}, layer", config.encoder_layers):
        labels = target_ids(summarizer, source, target, max_new_tokens)
    shifted = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
    L = shifted.shape[1]
    inputs = {"input_ids": source, "decoder_input_ids": shifted}
    run, statistics, recorded = list(steps(config, T, L)), StatisticsListener(), {}
    with ExitStack() as listeners:
        if path is not None:
            listeners.enter_context(listen(listeners.enter_context(trace_file(path, inputs, run, dtype))))
        if place is not None:
            recorded = listeners.enter_context(record(place, f"{place}.*"))
        else:
            listeners.enter_context(listen(statistics))
        layers = config.encoder_layers, config.decoder_layers
        listeners.enter_context(layer_progress(f"{name}: tracing, layer", *layers))
        model(source, decoder_input_ids=shifted)
    if place is not None:
        pieces = Pieces(*(tokenizer.convert_ids_to_tokens(ids[0].tolist()) for ids in (source, shifted)))
        show_values(recorded, steps_at(place, run), config, pieces, everything)
        return
    rows = table_rows(run, statistics.statistics, "nothing" if everything or as_json else "blocks")
    facts: dict[str, Any] = {
        "document": name,
        "num_source_tokens": T,
        "num_target_tokens": L,
        "target": " ".join(tokenizer.decode(labels[0], skip_special_tokens=True).split()),
    }
    if as_json:
        print_json(facts | {"steps": [as_dict(row, dtype) for row in rows]})
        return
    print_table(as_table(rows, dtype))
    num_bytes = np.dtype(dtype).itemsize * sum(step.size for step in run)
    figures = f"{counted(len(run), 'tensor')} of {size(num_bytes)}, {count(sum(step.flops for step in run))} FLOPs"
    lengths = f"{counted(T, 'source token')}, {counted(L, 'target token')}"
    print_text(f"\n{lengths}: {figures}\ntarget: {facts['target']}")


def target_ids(
    summarizer: SummarizationPipeline, source: np.ndarray, target: str | None, max_new_tokens: int | None
) -> np.ndarray:
    """Encode the target text, or let the model write one.

    Args:
        summarizer: the model and its tokenizer.
        source: token ids (1, T).
        target: the text; None: the model's summary.
        max_new_tokens: maximum length of the summary.

    Returns:
        Labels of the decoder (1, L).

    Raises:
        UsageError: the text is empty, or the model cannot write one.
    """
    if target is None:
        try:
            ids: np.ndarray = summarizer.model.generate(source, num_return_sequences=1, max_new_tokens=max_new_tokens)
        except NumericsError as error:
            raise UsageError(f"{error}; to trace such a model, give a text with --target") from None
        return ids[:, 1:]  # without the start token
    if not target.strip():
        raise UsageError("--target is empty: give a text, or omit --target to use the model's summary")
    return np.array([summarizer.tokenizer.encode(target)])


@contextmanager
def trace_file(path: Path, inputs: dict[str, np.ndarray], run: list[Step], dtype: str) -> Iterator[TensorWriter]:
    """Write input ids, then every tensor of the run, to a safetensors file; print a note with its size.

    Args:
        path: the file.
        inputs: ids by name.
        run: the steps.
        dtype: of their tensors.

    Raises:
        UsageError: the disk is too full.
        OutputError: the file cannot be written.
    """
    shapes = {name: (ids.shape, ids.dtype.name) for name, ids in inputs.items()}
    layout = file_layout(shapes | {step.name: (step.shape, dtype) for step in run})
    if layout.size > (free := shutil.disk_usage(path.absolute().parent).free):
        raise UsageError(f"--save {path} needs {size(layout.size)}, but only {size(free)} are free: use a shorter text")
    note(f"{path}: {len(layout.offsets)} tensors, {size(layout.size)}")
    with safetensors_writer(path, layout) as writer:
        for name, ids in inputs.items():
            writer(name, ids)
        yield writer


def show_values(
    recorded: dict[str, np.ndarray], chosen: list[Step], config: PegasusXConfig, pieces: Pieces, everything: bool
) -> None:
    """Print the values of tensors, and the strongest keys of attention; of a layer's blocks only the first.

    Args:
        recorded: tensors by name.
        chosen: the steps that computed them.
        config: the model's configuration.
        pieces: the tokens.
        everything: print all blocks and all queries.
    """
    groups: dict[str, list[Step]] = {}
    for step in chosen:
        groups.setdefault(step.name if everything else folded_name(step.name, "blocks"), []).append(step)
    for folded, (first, *others) in groups.items():
        tensor = recorded[first.name]
        title = f"{first.name}  {dimensions(first.letters, first.shape)}  {tensor.dtype}"
        more = f"   ({len(others)} more {folded}: --all)" if others else ""
        print_text(click.style(title, bold=True) + more)
        print_text(format_values(tensor))
        if first.name.endswith((".scores", ".probs")):
            limit = tensor.shape[2] if everything else NUM_QUERIES
            print_text("\n".join(attention_lines(first.name, tensor, config, pieces, limit)))
        print_text()
