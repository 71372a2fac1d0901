"""``pegasusx-ref summarize``: documents in, a summary a line out."""

import sys
from pathlib import Path
from typing import Any

import click

from pegasusx_ref.cli.messages import UsageError, plainly
from pegasusx_ref.cli.progress import progress
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tokenizer import PegasusTokenizer


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option("--model", "folder", required=True, type=click.Path(path_type=Path), help="Folder with the checkpoint.")
@click.option("--backend", default="numpy", show_default=True, help="What computes.")
@click.option("--device", default=None, help="Where it computes.  [default: the backend's first]")
@click.option("--dtype", default="float32", show_default=True, help="What it computes in.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens of a summary at the most.")
@click.option("--num-beams", type=click.IntRange(min=1), help="Beams; 1 is greedy.")
@click.option("--length-penalty", type=float, help="Above 0 favours long summaries, where there are beams.")
@click.option("--min-length", type=click.IntRange(min=0), help="Tokens of a summary at the least, the start token too.")
@click.option("--progress/--no-progress", "shown", default=True, help="Show progress on stderr.  [default: yes]")
def summarize(
    files: tuple[Path, ...],
    folder: Path,
    backend: str,
    device: str | None,
    dtype: str,
    max_new_tokens: int | None,
    num_beams: int | None,
    length_penalty: float | None,
    min_length: int | None,
    shown: bool,
) -> None:
    """Summarize text files, or standard input where no FILE is given or FILE is "-".

    Prints one line a document. What is not set comes from the checkpoint's generation_config.json.
    """
    with plainly():
        documents = [read_document(path) for path in files or (Path("-"),)]
        model = PegasusXForConditionalGeneration.from_pretrained(folder, backend, device, dtype)
        tokenizer = PegasusTokenizer.from_pretrained(folder)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UsageError(
                f"{folder}: spiece.model has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}: "
                "they do not belong together"
            )
        settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "min_length": min_length,
        }
        for name, text in documents:
            click.echo(summarize_document(name, text, model, tokenizer, settings, shown))
            sys.stdout.flush()


def summarize_document(
    name: str,
    text: str,
    model: PegasusXForConditionalGeneration,
    tokenizer: PegasusTokenizer,
    settings: dict[str, Any],
    shown: bool,
) -> str:
    """Summarize one document in one line, with progress and a warning where it is too long on stderr."""
    longest = model.config.max_position_embeddings
    batch = tokenizer(text, max_length=longest, return_tensors="np")
    if cut := batch.num_truncated_tokens[0]:
        click.echo(
            f"Warning: {name} is longer than the model's {longest} tokens: the last {cut} were dropped", err=True
        )
    _, max_length = model.generation_config.updated(**settings).lengths()
    with progress(shown, name, batch.input_ids.shape[1], model.config, max_length):
        ids = model.generate(**batch, **settings)
    return " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())


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
        raise UsageError(f"{name}: empty, there is nothing to summarize")
    return name, text
