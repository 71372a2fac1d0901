"""``pegasusx-ref corpus``: a table of summaries of many documents."""

import signal
from pathlib import Path
from typing import Any

import click

from pegasusx_ref.cli import options
from pegasusx_ref.cli.bars import progress_bars
from pegasusx_ref.cli.commands import Command, OutputFolder
from pegasusx_ref.cli.messages import message, note
from pegasusx_ref.cli.printing import print_text
from pegasusx_ref.cli.signals import deferred_signals
from pegasusx_ref.corpus import (
    BATCH_SIZE,
    BATCH_TOKENS,
    LONG,
    SHARD_ROWS,
    Progress,
    RayEngine,
    Summarizer,
    summarize_corpus,
)
from pegasusx_ref.corpus.engine import this_process
from pegasusx_ref.demo import DEMO_CHECKPOINT, NO_MODEL


@click.command("corpus", cls=Command)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", type=OutputFolder(), required=True, metavar="FOLDER", help="Folder of the table.")
@click.option("--resume", is_flag=True, help="Continue the table in --out; repeat its other options.")
@click.option("--column", default="text", show_default=True, metavar="NAME", help="Column of the texts in tables.")
@click.option(
    "--long",
    default=LONG[0],
    show_default=True,
    type=click.Choice(LONG),
    help="Texts beyond the model's length: cut off, refused, or summarized in parts.",
)
@click.option("--limit", type=options.NOT_NEGATIVE, help="Stop after so many documents.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(["local", "ray"]),
    help="Where summaries are computed: in this process, or by workers of Ray.",
)
@click.option("--address", metavar="ADDRESS", help="Ray: of its cluster; started on this machine if left out.")
@click.option(
    "--workers", type=options.POSITIVE, help="Ray: number of workers; as many as there is room for if left out."
)
@click.option(
    "--cpus-per-worker", type=click.FloatRange(min=0, min_open=True), help="Ray: cores of a worker.  [default: 1]"
)
@click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="Ray: GPUs of a worker.  [default: 0]")
@options.model_option
@options.revision_option
@options.backend_option
@options.device_option
@options.dtype_option
@options.quantization_option
@options.quantize_embedding_option
@click.option(
    "--batch-size", default=BATCH_SIZE, show_default=True, type=options.POSITIVE, help="Texts computed together."
)
@click.option(
    "--batch-tokens",
    default=BATCH_TOKENS,
    show_default=True,
    type=options.POSITIVE,
    help="Source tokens computed together.",
)
@click.option(
    "--shard-rows", default=SHARD_ROWS, show_default=True, type=options.POSITIVE, help="Rows of a file of the table."
)
@options.max_new_tokens_option
@options.num_beams_option
@options.length_penalty_option
@options.min_length_option
@options.progress_option
def corpus_command(
    inputs: tuple[str, ...],
    out: Path,
    resume: bool,
    column: str,
    long: str,
    limit: int | None,
    engine: str,
    address: str | None,
    workers: int | None,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
    folder: Path | None,
    revision: str | None,
    backend: str,
    device: str | int | None,
    dtype: str,
    quantization: str | None,
    quantize_embedding: bool,
    batch_size: int,
    batch_tokens: int,
    shard_rows: int,
    shown: bool,
    **settings: Any,
) -> None:
    """Summarize the documents of many files into a table: parquet files in --out.

    INPUT is a folder, a file or a pattern of texts (.txt, .md) or tables (.jsonl, .csv, .parquet), or an address of
    fsspec. A document that fails is a row with its error. Ctrl-C and SIGTERM write what is finished; --resume
    continues, also after kill -9.
    """
    of_ray: dict[str, Any] = {
        "address": address,
        "workers": workers,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
    }
    of_ray = {name: value for name, value in of_ray.items() if value is not None}
    if of_ray and engine != "ray":
        option = next(iter(of_ray)).replace("_", "-")
        raise click.UsageError(f"--{option} is of Ray: pass --engine ray, or leave it out")
    load: dict[str, Any] = {"backend": backend, "device": device, "dtype": dtype, "quantization": quantization}
    load |= {"quantize_embedding": quantize_embedding, **options.hub_options(folder, revision)}
    if folder is None:
        note(NO_MODEL)
    summarizer = Summarizer(
        folder or DEMO_CHECKPOINT,
        text_column=column,
        long=long,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        load=load,
        **settings,
    )
    with deferred_signals() as received, progress_bars(shown) as bars:
        bar = bars.add_task("reading the inputs", total=None)

        def advance(progress: Progress) -> None:
            completed = progress.resumed + progress.done
            bars.update(bar, description=f"{rates(progress)}, document", total=progress.total, completed=completed)

        done = summarize_corpus(
            inputs,
            out,
            summarizer,
            column=column,
            shard_rows=shard_rows,
            resume=resume,
            limit=limit,
            engine=RayEngine(**of_ray) if engine == "ray" else this_process,
            on_progress=advance,
            stops=lambda: bool(received),
        )
    if shown:
        earlier = f", {done.resumed} done before" if done.resumed else ""
        message(f"documents: {done.done} in {done.seconds:.1f} s{earlier}, {rates(done)}")
    if resume and not done.resumed:
        note(f"{out} had none of these documents: nothing was resumed")
    if done.num_dropped:
        note(f"tokens dropped beyond the model's length: {done.num_dropped} (column num_dropped)")
    if done.failed:
        note(f"documents without a summary: {done.failed} of {done.done} (column error)")
    if (left := done.total - done.resumed - done.done) > 0:
        note(f"documents left: {left}; the same command with --resume continues")
    print_text(str(out))
    if received:
        signal.raise_signal(received[0])


def rates(progress: Progress) -> str:
    """Format the speed of a run."""
    seconds = max(progress.seconds, 1e-9)
    figures = f"{progress.done / seconds:.3g} documents/s, {progress.num_tokens / seconds:.3g} tokens/s"
    return f"{figures}, {100 * progress.padding:.1f} % padding"
