"""``pegasusx-ref finetune``: train a model on pairs of a document and its summary."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pegasusx_ref.cli import options
from pegasusx_ref.cli.bars import progress_bars
from pegasusx_ref.cli.commands import INPUT_FILE, OUTPUT_FILE, Command, OutputFolder
from pegasusx_ref.cli.messages import message, note
from pegasusx_ref.cli.output_files import check_format, save_figure
from pegasusx_ref.cli.printing import print_text
from pegasusx_ref.cli.signals import deferred_signals
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.rendering.canvas import new_figure

if TYPE_CHECKING:
    from pegasusx_ref.finetuning import Finetuning

NOT_NEGATIVE_NUMBER, PROBABILITY = click.FloatRange(min=0), click.FloatRange(0, 1)


@click.command("finetune", cls=Command)
@click.argument("train", type=INPUT_FILE)
@click.option("--eval", "evaluation", type=INPUT_FILE, metavar="FILE", help="Held-out pairs.  [default: no evaluation]")
@click.option("--out", type=OutputFolder(), required=True, metavar="FOLDER", help="Folder of the run.")
@options.model_option
@options.revision_option
@click.option("--resume", is_flag=True, help="Continue the run in --out; repeat its other options.")
@click.option("--source-column", default="document", show_default=True, metavar="NAME", help="Column of documents.")
@click.option("--target-column", default="summary", show_default=True, metavar="NAME", help="Column of summaries.")
@click.option("--max-source-tokens", type=click.IntRange(2), help="Truncate documents.  [default: the model's maximum]")
@click.option("--max-target-tokens", type=click.IntRange(2), help="Truncate summaries.  [default: 256]")
@click.option("--steps", type=options.POSITIVE, help="Updates of the weights.")
@click.option("--epochs", type=options.POSITIVE, help="Passes over the pairs, instead of --steps.  [default: 3]")
@click.option("--batch-size", default=8, show_default=True, type=options.POSITIVE, help="Pairs computed at once.")
@click.option("--accumulate", default=1, show_default=True, type=options.POSITIVE, help="Batches in a step.")
@click.option(
    "--optimizer", default="adafactor", show_default=True, type=click.Choice(["adafactor", "adamw"]), help="Optimizer."
)
@click.option(
    "--learning-rate", type=NOT_NEGATIVE_NUMBER, help="Highest learning rate.  [default: adafactor 0.003, adamw 0.0001]"
)
@click.option("--warmup-steps", type=options.NOT_NEGATIVE, help="[default: a tenth of the steps, at most 1000]")
@click.option(
    "--schedule",
    default="inverse-sqrt",
    show_default=True,
    type=click.Choice(["constant", "linear", "inverse-sqrt"]),
    help="Learning rate after the warm-up.",
)
@click.option("--label-smoothing", default=0.1, show_default=True, type=PROBABILITY, help="Spread over all tokens.")
@click.option("--clip", type=click.FloatRange(0, min_open=True), help="Largest norm of the gradient.  [default: none]")
@click.option("--dropout", type=PROBABILITY, help="All rates of dropout.  [default: those of config.json]")
@click.option("--seed", default=0, show_default=True, type=options.NOT_NEGATIVE, help="Seed of order and dropout.")
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16", "float64"]),
    help="Dtype of products.",
)
@options.device_option
@click.option("--eval-every", type=options.POSITIVE, help="Steps between evaluations and saves.  [default: an epoch]")
@click.option(
    "--eval-summaries", default=32, show_default=True, type=options.NOT_NEGATIVE, help="Pairs to summarize for ROUGE."
)
@click.option("--plot", type=OUTPUT_FILE, metavar="FILE", help="Plot losses and ROUGE by step.")
@click.option("--tensorboard", is_flag=True, help="Write files of TensorBoard too.")
@options.progress_option
def finetune_command(
    train: Path,
    evaluation: Path | None,
    out: Path,
    folder: Path | None,
    revision: str | None,
    resume: bool,
    device: str | int | None,
    plot: Path | None,
    tensorboard: bool,
    shown: bool,
    **settings: Any,
) -> None:
    """Train a model on pairs of a document and its summary, in the file TRAIN: .jsonl, .csv or .parquet.

    Writes the checkpoints last and, with --eval, best, log.csv and the state of the run to --out, and prints the
    checkpoints' paths.
    Ctrl-C and SIGTERM save the run after the current step; --resume continues it bit for bit, also after kill -9.
    `torchrun -m pegasusx_ref finetune` trains on several devices. Without --model, the embedded checkpoint is trained.
    """
    # Imported here, because the other commands do not need torch.
    from pegasusx_ref.finetuning import Finetuning, Settings, curves_figure

    if plot is not None:
        check_format(new_figure(1, 1), plot, "--plot")  # fails before the run
    run = Finetuning(
        train,
        out,
        folder or DEMO_CHECKPOINT,
        evaluation=evaluation,
        settings=Settings(**settings),
        device=device,
        resume=resume,
        tensorboard=tensorboard,
        **options.hub_options(folder, revision),
    )
    is_first = run.workers.rank == 0
    if resume and is_first and run.saved_step < 0:
        note(f"{out}: there is no run to resume: a new one begins")
    with deferred_signals(run.stop) as received:
        train_with_progress(run, shown and is_first)
    if is_first:
        if plot is not None and run.step:
            save_figure(curves_figure(run.out / "log.csv"), plot, "--plot")
        if run.step < run.num_steps:
            note(f"step {run.step} of {run.num_steps} is saved in {out}; the same command with --resume continues")
        else:
            for path in (run.out / name for name in ("best", "last") if evaluation or name == "last"):
                print_text(str(path))
    if received:
        signal.raise_signal(received[0])


def train_with_progress(run: "Finetuning", shown: bool) -> None:
    """Train with progress on stderr: a bar for the steps, a line for each evaluation.

    Args:
        run: to train.
        shown: whether to show progress.
    """
    if shown:
        held_out = f", {len(run.held_out)} to evaluate" if run.held_out else ""
        start = f"{100 * run.padding:.1f} % of the source tokens are padding"
        if run.step:
            start = f"from step {run.step}" if run.step < run.num_steps else "all of which are done"
        message(f"{len(run.examples)} pairs{held_out}, {run.num_steps} steps, {start}")
    with progress_bars(shown) as bars:
        bar = bars.add_task("training", total=run.num_steps, completed=run.step)
        for record in run:
            rate = f"learning rate {record['learning_rate']:.3g}, {record['tokens_per_second']:.0f} tokens/s"
            bars.update(bar, description=f"loss {record['loss']:.3f}, {rate}, step", completed=record["step"])
            if shown and run.saved_step == run.step:
                message(f"step {record['step']}: {evaluation_line(record)}, {rate}")


def evaluation_line(record: dict[str, float]) -> str:
    """Format the losses and ROUGE of a step."""
    line = f"loss {record['loss']:.3f}"
    if "eval_loss" in record:
        line += f", evaluation {record['eval_loss']:.3f}"
    if "rouge1" in record:
        line += f", ROUGE-1/2/L {record['rouge1']:.1f}/{record['rouge2']:.1f}/{record['rougeL']:.1f}"
    return line
