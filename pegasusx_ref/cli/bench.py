"""``pegasusx-ref bench``: time and memory beside transformers' and the machine's limit, in one run."""

import re
import shlex
import sys
from pathlib import Path

import click

from pegasusx_ref.benchmarking.cases import BACKENDS, Case
from pegasusx_ref.benchmarking.facts import facts, load_average, usable_cores
from pegasusx_ref.benchmarking.plots import longest_series, scaling_figure
from pegasusx_ref.benchmarking.report import as_markdown, case_line, case_table, report
from pegasusx_ref.benchmarking.results import Results, Run
from pegasusx_ref.benchmarking.runner import run_cases
from pegasusx_ref.benchmarking.storage import read_results, resume_results
from pegasusx_ref.benchmarking.suites import DEVICES, SUITES, resize
from pegasusx_ref.cli.bars import progress_bars
from pegasusx_ref.cli.commands import OUTPUT_FILE, Command, OutputFile
from pegasusx_ref.cli.messages import UsageError, message, note
from pegasusx_ref.cli.options import progress_option
from pegasusx_ref.cli.output_files import check_format, save_figure
from pegasusx_ref.cli.printing import print_table, print_text, table_lines
from pegasusx_ref.model.config import PRESETS
from pegasusx_ref.rendering.canvas import new_figure

MAX_LOAD = 0.25  # of the cores; a higher load disturbs measurements that use all of them


def check_device(_context: click.Context, _option: click.Parameter, device: str | None) -> str | None:
    """Check that a device name is valid; its library reports whether the device exists."""
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"--device {device!r} is not a device: choose cpu, cuda:0, cuda:1, …")
    return device


@click.command("bench", cls=Command)
@click.option("--suite", default="cpu", show_default=True, type=click.Choice(list(SUITES)), help="Suite of cases.")
@click.option("--case", "names", multiple=True, metavar="NAME", help="Run only this case of the suite; repeatable.")
@click.option("--list", "only_list", is_flag=True, help="List the suite's cases and aims, then exit.")
@click.option("--device", callback=check_device, help="Device: cpu, cuda:0, ….  [default: the suite's]")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds per case.  [default: 5, or 3 for slow cases]")
@click.option("--tokens", type=click.IntRange(min=1), help="Change the cases' length, which drops their aims.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Change the model's shape, which drops the aims.")
@click.option(
    "--out",
    type=OutputFile(read_if="show"),
    default="bench.json",
    show_default=True,
    metavar="FILE",
    help="Results file; resumed.",
)
@click.option("--fresh", is_flag=True, help="Overwrite an existing results file.")
@click.option("--plot", type=OUTPUT_FILE, metavar="FILE", help="Plot time and memory by length.")
@click.option("--markdown", is_flag=True, help="Print the tables in Markdown.")
@click.option("--show", is_flag=True, help="Print (and plot) the results file, then exit.")
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
    """Measure time and memory, compared with transformers and with the machine's limit.

    Each implementation runs in a process of its own. The processes take turns, one repetition each, round after round,
    and ratios are taken within a round. The results file is written after each case, and a later run resumes it. An
    implementation that cannot run leaves a gap and its reason. A missed aim is not an error; the exit code is 1 if a
    case has no measurement of this package, or its ratios differ so much that the machine must have been loaded.
    """
    cases = select_cases(resize(SUITES[suite], tokens, preset), names, suite)
    if only_list:
        print_table(case_table(cases))
        return
    if plot is not None:
        check_format(new_figure(1, 1), plot, "--plot")  # fails before the run
    if show:
        results = read_results(out)
    else:
        device = device or DEVICES[suite]
        settings = {"suite": suite, "device": device, "rounds": rounds, "tokens": tokens, "preset": preset}
        results = resume_results(out, settings, facts(), shlex.join(["pegasusx-ref", *sys.argv[1:]]), fresh)
        if plot is not None:
            longest_series([*cases, *(result.case for result in results.cases.values())])  # likewise
        if (load := load_average()) > MAX_LOAD * usable_cores():
            note(f"load average {load:.1f} on {usable_cores()} cores: times may be long and ratios unreliable")
        try:
            measure(cases, results, out, device, rounds, shown)
        except (KeyboardInterrupt, SystemExit):  # SystemExit: SIGINT and SIGTERM of a process of ours
            if results.cases:
                note(f"{len(results.cases)} cases are in {out}; run the same command to resume")
            raise
    print_text("\n".join(report(results, as_markdown if markdown else table_lines)))
    if plot is not None:
        save_figure(scaling_figure(results), plot, "--plot")
    missing = [
        case.name
        for case in cases
        if not show and not any(results.cases[case.name].runs.get(name, Run()).seconds for name in BACKENDS)
    ]
    unstable = [name for name, result in results.cases.items() if not show and result.unstable]
    if unstable:
        raise click.ClickException(f"the machine was loaded during {', '.join(unstable)}: run the command again")
    if missing:
        raise click.ClickException(f"no measurement of this package: {', '.join(missing)}")


def select_cases(cases: tuple[Case, ...], names: tuple[str, ...], suite: str) -> list[Case]:
    """Select cases by name, or all of them without names.

    Raises:
        UsageError: the suite has no such case.
    """
    known = {case.name: case for case in cases}
    for name in names:
        if name not in known:
            raise UsageError(f"--case {name!r} is not in the suite {suite!r}: choose from {', '.join(known)}")
    return [case for name, case in known.items() if not names or name in names]


def measure(cases: list[Case], results: Results, out: Path, device: str, rounds: int | None, shown: bool) -> None:
    """Run the missing cases with progress on stderr: a bar for the current case, a line for each finished one."""
    numbers = {case.name: f"case {i} of {len(cases)}" for i, case in enumerate(cases, start=1)}
    with progress_bars(shown) as bars:
        bar = bars.add_task("", total=1)

        def on_progress(name: str, step: str, done: int, total: int) -> None:
            bars.update(bar, description=f"{numbers[name]}, {name}: {step}", completed=done, total=total)

        for result in run_cases(cases, results, out, device, rounds, on_progress):
            if shown:
                message(f"{numbers[result.case.name]}, {case_line(result)}")
