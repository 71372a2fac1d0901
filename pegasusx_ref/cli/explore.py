"""``pegasusx-ref explore``: a text's run through the model as one HTML page."""

from pathlib import Path
from typing import Any

import click

from pegasusx_ref.cli import options
from pegasusx_ref.cli.commands import OUTPUT_FILE, Command
from pegasusx_ref.cli.documents import note_dropped, read_document
from pegasusx_ref.cli.printing import print_text
from pegasusx_ref.cli.progress import summary_progress
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.files.writing import write_text
from pegasusx_ref.summarization import pipeline


@click.command(cls=Command)
@options.file_argument
@click.option("--out", default="explore.html", show_default=True, type=OUTPUT_FILE, metavar="FILE", help="Output file.")
@options.model_option
@options.revision_option
@click.option("--tokens", type=click.IntRange(min=2), help="Maximum number of source tokens.  [default: the model's]")
@options.max_new_tokens_option
@options.num_beams_option
@options.progress_option
def explore(
    file: Path,
    out: Path,
    folder: Path | None,
    revision: str | None,
    tokens: int | None,
    shown: bool,
    **settings: Any,
) -> None:
    """Write an HTML page of a text's run: attention and summary.

    The text is FILE or standard input.

    Click a token for its block and the tokens that it attends to in every layer, a global token for the tokens that it
    attends to, a word of the summary for its most likely alternatives and its cross-attention to the source.
    The page needs no network. Prints its path and size.
    """
    # Imported here, because the other commands do not need the page's libraries.
    from pegasusx_ref.study.explore import as_page, explore_text
    from pegasusx_ref.study.explore.mathml import as_mathml

    as_mathml("x")  # fails before the run if the library is missing
    name, text = read_document(file)
    summarizer = pipeline("summarization", folder or DEMO_CHECKPOINT, **options.hub_options(folder, revision))
    model, tokenizer = summarizer.model, summarizer.tokenizer
    _, max_length = model.generation_config.updated(**settings).lengths()
    most = tokens or model.config.max_position_embeddings
    progress = summary_progress(shown, name, min(most, len(tokenizer.encode(text))), model.config, max_length)
    exploration = explore_text(summarizer, text, most, progress, **settings)
    limit = f"--tokens {tokens}" if tokens else f"the model's {most} tokens (--tokens reads more)"
    note_dropped(name, exploration.num_dropped, limit)
    page = as_page(exploration, tokenizer, Path(name).name)
    write_text(out, page)
    print_text(f"{out}: {len(page.encode('utf-8', 'backslashreplace')) / 1e6:.1f} MB")
