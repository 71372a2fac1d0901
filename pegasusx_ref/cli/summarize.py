"""``pegasusx-ref summarize``: one line of summary for each document."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pegasusx_ref.cli import options
from pegasusx_ref.cli.commands import INPUT_FILE, Command
from pegasusx_ref.cli.documents import read_document
from pegasusx_ref.cli.messages import note
from pegasusx_ref.cli.printing import print_json, print_text
from pegasusx_ref.cli.progress import summary_progress
from pegasusx_ref.summarization import SummarizationPipeline, pipeline


@click.command(cls=Command)
@click.argument("files", nargs=-1, type=INPUT_FILE, metavar="[FILE]...")
@options.model_option
@options.revision_option
@options.backend_option
@options.device_option
@options.dtype_option
@options.quantization_option
@options.quantize_embedding_option
@options.max_new_tokens_option
@options.num_beams_option
@click.option("--batch-size", default=1, show_default=True, type=options.POSITIVE, help="Documents processed together.")
@options.length_penalty_option
@options.min_length_option
@options.json_option
@options.progress_option
def summarize(
    files: tuple[Path, ...],
    folder: Path | None,
    revision: str | None,
    backend: str,
    device: str | int | None,
    dtype: str,
    quantization: str | None,
    quantize_embedding: bool,
    batch_size: int,
    as_json: bool,
    shown: bool,
    **settings: Any,
) -> None:
    """Summarize each text FILE; "-" or no FILE reads standard input.

    Prints one line for each document when it is done; --json makes it a JSON object. The defaults of generation are
    those of the checkpoint's generation_config.json. Without --model, the embedded checkpoint writes synopses of
    Debian packages.
    """
    documents = [read_document(path) for path in files or (Path("-"),)]
    summarizer = pipeline(
        "summarization",
        folder,
        backend=backend,
        device=device,
        dtype=dtype,
        quantization=quantization,
        quantize_embedding=quantize_embedding,
        **options.hub_options(folder, revision),
    )
    for start in range(0, len(documents), batch_size):
        for result in summarize_documents(documents[start : start + batch_size], summarizer, settings, shown):
            if as_json:
                print_json(result)
            else:
                print_text(result["summary_text"])


def summarize_documents(
    documents: list[tuple[str, str]], summarizer: SummarizationPipeline, settings: dict[str, Any], shown: bool
) -> Iterator[dict[str, Any]]:
    """Summarize documents together, each in one line; progress and notes on dropped tokens are on stderr.

    Args:
        documents: names and texts.
        summarizer: the model and its tokenizer.
        settings: of `generate`.
        shown: whether to show progress.

    Returns:
        The entries of each document's JSON object.
    """
    names = [name for name, _ in documents]
    batch = summarizer.encode([text for _, text in documents], names=names)
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    lengths = batch.attention_mask.sum(axis=1).tolist()
    _, max_length = summarizer.generation_config.updated(**settings).lengths()
    with summary_progress(shown, title, sum(lengths), summarizer.model.config, max_length):
        summaries = summarizer.generate(batch, **settings)
    for name, (text, *_), length, dropped in zip(names, summaries, lengths, batch.num_truncated_tokens, strict=True):
        summary = " ".join(text.split())
        if not summary:
            note(f"{name}: the summary is empty")
        yield {
            "document": name,
            "summary_text": summary,
            "num_source_tokens": length,
            "num_dropped_tokens": dropped,
        }
