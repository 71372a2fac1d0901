"""``pegasusx-ref bench``: time and memory beside transformers' and the machine's limit, in one run."""

import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pegasusx_ref.benchmarking import facts, measured
from pegasusx_ref.benchmarking.cases import OURS, PRESET_NAMES, Case
from pegasusx_ref.benchmarking.facts import busy_cores, cores
from pegasusx_ref.benchmarking.plots import longest_line, scaling
from pegasusx_ref.benchmarking.report import as_markdown, case_table, line_of, report
from pegasusx_ref.benchmarking.results import Results
from pegasusx_ref.benchmarking.storing import read_results, resumed, write_results
from pegasusx_ref.benchmarking.suites import DEVICES, SUITES, resized
from pegasusx_ref.cli.messages import UsageError, note, plainly
from pegasusx_ref.cli.options import progress_option
from pegasusx_ref.cli.outputs import writable
from pegasusx_ref.cli.picture import check_format, save
from pegasusx_ref.cli.printing import print_table, table_lines
from pegasusx_ref.cli.progress import moving_bars
from pegasusx_ref.rendering.canvas import new_figure

MOST_BUSY = 0.25  # of the cores: above that a measurement of all of them is disturbed
FILE: Any = click.Path(path_type=Path, dir_okay=False)


def a_device(_context: click.Context, _option: click.Parameter, device: str | None) -> str | None:
    """Refuse what is the name of no device; whether it is there the libraries say."""
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"--device {device!r} is no device: choose cpu, cuda:0, cuda:1, …")
    return device


@click.command("bench")
@click.option("--suite", default="cpu", show_default=True, type=click.Choice(list(SUITES)), help="Which cases.")
@click.option("--case", "names", multiple=True, metavar="NAME", help="One of the suite's cases; may be repeated.")
@click.option("--list", "only_list", is_flag=True, help="List the suite's cases with their aims, and run nothing.")
@click.option("--device", callback=a_device, help="Where: cpu, cuda:0, ….  [default: the suite's]")
@click.option("--rounds", type=click.IntRange(min=1), help="Repetitions of each.  [default: 5, of long ones 3]")
@click.option("--tokens", type=click.IntRange(min=1), help="Take the cases at another length, without their aims.")
@click.option("--preset", type=click.Choice(PRESET_NAMES), help="Take them with another model's shape, likewise.")
@click.option(
    "--out",
    type=FILE,
    default=Path("bench.json"),
    show_default=True,
    metavar="FILE",
    help="What is measured goes here, and is gone on with from here.",
)
@click.option("--fresh", is_flag=True, help="Start anew where the file has results already.")
@click.option(
    "--plot",
    type=FILE,
    callback=writable,
    metavar="FILE",
    help="Draw time and memory by length.",
)
@click.option("--markdown", is_flag=True, help="Print the tables in Markdown.")
@click.option("--show", is_flag=True, help="Print, and draw, all that the file has, and run nothing.")
@progress_option
def bench_command(
    suite: str,
    names: tuple[str, ...],
    only_list: bool,
    device: str | None,
    rounds: int | None,
    tokens: int | None,
    preset: str | None,
    out: Path,
    fresh: bool,
    plot: Path | None,
    markdown: bool,
    show: bool,
    shown: bool,
) -> None:
    """Measure time and memory, each beside transformers' and beside what the machine can do at that moment.

    Every implementation has a process of its own; they take turns, one repetition each, round after round. Ratios are
    taken within a round. FILE, which --out names, is written after each case, and a later run goes on with it; who
    cannot run leaves a gap with the reason. An aim that is missed is not an error; the exit code is 1 where a case has
    no figures of this package.
    """
    with plainly():
        cases = chosen(resized(SUITES[suite], tokens, preset), names, suite)
        if only_list:
            print_table(case_table(cases))
            return
        if plot is not None:
            check_format(new_figure(1, 1), plot, "--plot")  # before anything long
        if show:
            results = read_results(out)
        else:
            device = device or DEVICES[suite]
            settings = {"suite": suite, "device": device, "rounds": rounds, "tokens": tokens, "preset": preset}
            results = resumed(out, settings, facts(), shlex.join(["pegasusx-ref", *sys.argv[1:]]), fresh)
            if plot is not None:
                longest_line([*cases, *(result.case for result in results.cases.values())])  # or say so now
            write_results(out, results)  # that it can be written is known now
            if (load := busy_cores()) > MOST_BUSY * cores():
                note(f"load of the last minute {load:.1f} on {cores()} cores: times may be long, and ratios uncertain")
            try:
                with ended_in_order():
                    run(cases, results, out, device, rounds, shown)
            except KeyboardInterrupt:
                note(f"{len(results.cases)} cases are in {out}; the same command goes on with the others")
                raise
        click.echo("\n".join(report(results, as_markdown if markdown else table_lines)))
        if plot is not None:
            save(scaling(results), plot, "--plot")
        if not show and (missing := without_ours(results, cases)):
            raise click.ClickException(f"no figures of this package: {', '.join(missing)}")


def chosen(cases: tuple[Case, ...], names: tuple[str, ...], suite: str) -> list[Case]:
    """Choose cases by name, all of them where none is named.

    Raises:
        UsageError: the suite has no such case.
    """
    known = {case.name: case for case in cases}
    for name in names:
        if name not in known:
            raise UsageError(f"--case {name!r} is not in the suite {suite!r}: choose from {', '.join(known)}")
    return [case for name, case in known.items() if not names or name in names]


def without_ours(results: Results, cases: list[Case]) -> list[str]:
    """Name the cases in which nothing of this package ran."""
    runs = {case.name: results.cases[case.name].runs for case in cases}
    return [name for name, of in runs.items() if not any(run.seconds for who, run in of.items() if who in OURS)]


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Let SIGTERM end the program as an exception does: processes and temporary files go with it."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(cases: list[Case], results: Results, out: Path, device: str, rounds: int | None, shown: bool) -> None:
    """Measure what is not in the file yet, with progress on stderr and a line for each case that is done.

    Args:
        cases: what is wanted.
        results: what the file has.
        out: the file.
        device: where.
        rounds: of each case; None leaves it to their length.
        shown: whether to show progress.
    """
    places = {case.name: f"{i} of {len(cases)}" for i, case in enumerate(cases, start=1)}
    with moving_bars(shown) as bars:
        bar = bars.add_task("", total=1)

        def watch(name: str, what: str, done: int, total: int) -> None:
            bars.update(bar, description=f"case {places[name]}, {name}: {what}", completed=done, total=total)

        for result in measured(cases, results, out, device, rounds, watch):
            if shown:
                line = f"case {places[result.case.name]}, {line_of(result)}"
                print(line, file=sys.stderr, flush=True)  # on a terminal it goes above the bar
