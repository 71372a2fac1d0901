"""``pegasusx-ref explore``: a text on its way through the model, as one page."""

from pathlib import Path
from typing import Any

import click

from pegasusx_ref.cli.messages import note, plainly
from pegasusx_ref.cli.options import model_option, progress_option
from pegasusx_ref.cli.outputs import writable, write_report
from pegasusx_ref.cli.progress import progress
from pegasusx_ref.cli.summarize import read_document
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.summarization import pipeline


@click.command()
@click.argument("file", default="-", type=click.Path(path_type=Path), metavar="[FILE]")
@click.option(
    "--out",
    default="explore.html",
    show_default=True,
    type=click.Path(path_type=Path),
    callback=writable,
    metavar="FILE",
    help="Where the page goes.",
)
@model_option
@click.option(
    "--tokens", type=click.IntRange(min=2), help="Source tokens to read at the most.  [default: the model's length]"
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens of the summary at the most.")
@click.option("--num-beams", type=click.IntRange(min=1), help="Beams; 1 is greedy.")
@progress_option
def explore(
    file: Path,
    out: Path,
    folder: Path | None,
    tokens: int | None,
    max_new_tokens: int | None,
    num_beams: int | None,
    shown: bool,
) -> None:
    """Show a text on its way through the model, as one page: FILE, or standard input.

    On the page click a token to see its block and what it attends to in every layer, a global token to see what it
    reads, a word of the summary to see what else might have stood there and where in the text the decoder looked.
    The page needs no network. Prints its path and size.
    """
    with plainly():
        # Only here, so that the other commands do not wait for what the page needs.
        from pegasusx_ref.study.explore import as_page, explored
        from pegasusx_ref.study.explore.mathml import as_mathml

        as_mathml("x")  # where the library is missing, say so before the run
        name, text = read_document(file)
        folder = folder or DEMO_CHECKPOINT
        summarizer = pipeline("summarization", folder)
        model, tokenizer = summarizer.model, summarizer.tokenizer
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
        _, max_length = model.generation_config.updated(**settings).lengths()
        most = tokens or model.config.max_position_embeddings
        num_tokens = min(most, len(tokenizer.encode(text)))
        bars = progress(shown, name, num_tokens, model.config, max_length)
        exploration = explored(summarizer, text, most, bars, **settings)
        if exploration.num_dropped:
            limit = f"--tokens {tokens}" if tokens else f"the model's {most} tokens (--tokens reads more)"
            note(f"{name} is longer than {limit}: the last {exploration.num_dropped} tokens were dropped")
        page = as_page(exploration, tokenizer, Path(name).name)
        write_report(out, page)
    click.echo(f"{out}: {len(page.encode('utf-8', 'backslashreplace')) / 1e6:.1f} MB")
