"""``pegasusx-ref summarize``: documents in, a summary a line out."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from pegasusx_ref.backend.registry import backend_names
from pegasusx_ref.cli.messages import UsageError, note, plainly
from pegasusx_ref.cli.options import model_option, progress_option
from pegasusx_ref.cli.progress import progress
from pegasusx_ref.summarization import SummarizationPipeline, pipeline


def name_or_number(_context: click.Context, _option: click.Parameter, device: str | None) -> str | int | None:
    """Make a number of digits: devices have names or are numbered."""
    return int(device) if device is not None and device.isdecimal() else device


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@model_option
@click.option("--backend", default="numpy", show_default=True, help=f"One of: {', '.join(backend_names())}.")
@click.option(
    "--device", callback=name_or_number, help="Where it computes: cpu, cuda:0, 0.  [default: the backend's first]"
)
@click.option("--dtype", default="float32", show_default=True, help="What it computes in: float32, float64, ….")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens of a summary at the most.")
@click.option("--num-beams", type=click.IntRange(min=1), help="Beams; 1 is greedy.")
@click.option("--length-penalty", type=float, help="Above 0 favours long summaries, where there are beams.")
@click.option("--min-length", type=click.IntRange(min=0), help="Tokens of a summary at the least, the start token too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a document.")
@progress_option
def summarize(
    files: tuple[Path, ...],
    folder: Path | None,
    backend: str,
    device: str | int | None,
    dtype: str,
    max_new_tokens: int | None,
    num_beams: int | None,
    length_penalty: float | None,
    min_length: int | None,
    as_json: bool,
    shown: bool,
) -> None:
    """Summarize text files, or standard input where no FILE is given or FILE is "-".

    Prints one line a document as soon as it is done. What is not set comes from the checkpoint's
    generation_config.json. Without --model a small embedded checkpoint writes synopses of Debian packages.
    """
    with plainly():
        documents = [read_document(path) for path in files or (Path("-"),)]
        summarizer = pipeline("summarization", folder, backend=backend, device=device, dtype=dtype)
        settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "min_length": min_length,
        }
        for name, text in documents:
            result = summarize_document(name, text, summarizer, settings, shown)
            click.echo(json.dumps(result, ensure_ascii=False) if as_json else result["summary_text"])
            sys.stdout.flush()


def summarize_document(
    name: str, text: str, summarizer: SummarizationPipeline, settings: dict[str, Any], shown: bool
) -> dict[str, Any]:
    """Summarize one document in one line; progress, and notes on what was cut off or came out empty, go to stderr.

    Args:
        name: what to call the document.
        text: what is in it.
        summarizer: the model and its tokenizer.
        settings: of `generate`.
        shown: whether to show progress.

    Returns:
        The entries of the document's JSON object.
    """
    model, tokenizer = summarizer.model, summarizer.tokenizer
    batch = summarizer.encode(text)
    num_tokens, num_dropped = batch.input_ids.shape[1], batch.num_truncated_tokens[0]
    note_dropped(name, num_dropped, model.config.max_position_embeddings)
    _, max_length = model.generation_config.updated(**settings).lengths()
    with progress(shown, name, num_tokens, model.config, max_length):
        ids = model.generate(**batch, **settings)[0]
    summary = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    if not summary:
        note(f"{name}: the model wrote an empty summary")
    return {
        "document": name,
        "summary_text": summary,
        "num_source_tokens": num_tokens,
        "num_dropped_tokens": num_dropped,
    }


def note_dropped(name: str, num_dropped: int, longest: int) -> None:
    """Say how many tokens of a document the model does not read, if any."""
    if num_dropped:
        note(f"{name} is longer than the model's {longest} tokens: the last {num_dropped} were dropped")


def read_document(path: Path) -> tuple[str, str]:
    """Read a document, or standard input for "-".

    Returns:
        What to call it, and its text.

    Raises:
        UsageError: it cannot be read, is no UTF-8 text, or is empty.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not a UTF-8 text (byte {error.start} is {raw[error.start]:#04x})") from None
    if "\0" in text:
        raise UsageError(f"{name}: a binary file, not a text (it holds a zero byte)")
    if not text.strip():
        raise UsageError(f"{name}: empty, there is nothing to read")
    return name, text
