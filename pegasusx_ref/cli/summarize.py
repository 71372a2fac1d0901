"""``pegasusx-ref summarize``: one line of summary for each document."""

from pathlib import Path
from typing import Any

import click

from pegasusx_ref.backend.registry import backend_names
from pegasusx_ref.cli import options
from pegasusx_ref.cli.commands import INPUT_FILE, Command
from pegasusx_ref.cli.documents import encode_document, read_document
from pegasusx_ref.cli.messages import note
from pegasusx_ref.cli.printing import print_json, print_text
from pegasusx_ref.cli.progress import summary_progress
from pegasusx_ref.summarization import SummarizationPipeline, pipeline


def device_or_index(_context: click.Context, _option: click.Parameter, device: str | None) -> str | int | None:
    """Convert digits to a device index."""
    return int(device) if device is not None and device.isdecimal() else device


@click.command(cls=Command)
@click.argument("files", nargs=-1, type=INPUT_FILE, metavar="[FILE]...")
@options.model_option
@click.option("--backend", default="numpy", show_default=True, help=f"Backend: {', '.join(backend_names())}.")
@click.option("--device", callback=device_or_index, help="Device: cpu, cuda:0, 0.  [default: the backend's first]")
@click.option("--dtype", default="float32", show_default=True, help="Dtype of the computation: float32, float64, ….")
@options.max_new_tokens_option
@options.num_beams_option
@click.option("--length-penalty", type=float, help="Beam search: values above 0 favour long summaries.")
@click.option("--min-length", type=options.NOT_NEGATIVE, help="Minimum length in tokens, including the start token.")
@options.json_option
@options.progress_option
def summarize(
    files: tuple[Path, ...],
    folder: Path | None,
    backend: str,
    device: str | int | None,
    dtype: str,
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
    summarizer = pipeline("summarization", folder, backend=backend, device=device, dtype=dtype)
    for name, text in documents:
        result = summarize_document(name, text, summarizer, settings, shown)
        if as_json:
            print_json(result)
        else:
            print_text(result["summary_text"])


def summarize_document(
    name: str, text: str, summarizer: SummarizationPipeline, settings: dict[str, Any], shown: bool
) -> dict[str, Any]:
    """Summarize one document in one line; progress and notes on dropped tokens and an empty summary are on stderr.

    Args:
        name: of the document.
        text: of the document.
        summarizer: the model and its tokenizer.
        settings: of `generate`.
        shown: whether to show progress.

    Returns:
        The entries of the document's JSON object.
    """
    model, tokenizer = summarizer.model, summarizer.tokenizer
    batch = encode_document(name, text, summarizer)
    num_tokens = batch.input_ids.shape[1]
    _, max_length = model.generation_config.updated(**settings).lengths()
    with summary_progress(shown, name, num_tokens, model.config, max_length):
        ids = model.generate(**batch, **settings)[0]
    summary = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    if not summary:
        note(f"{name}: the summary is empty")
    return {
        "document": name,
        "summary_text": summary,
        "num_source_tokens": num_tokens,
        "num_dropped_tokens": batch.num_truncated_tokens[0],
    }
