"""A run in words: what was measured on which machine, the tables, how many aims are met, who could not run and why."""

from collections.abc import Callable, Sequence

from pegasusx_ref.benchmarking.cases import MACHINE, Case
from pegasusx_ref.benchmarking.comparing import is_met, median, ratio, reached
from pegasusx_ref.benchmarking.results import CaseResult, Results
from pegasusx_ref.benchmarking.table import duration, fraction, tables
from pegasusx_ref.rendering.tables import Table, as_lines


def report(results: Results, write: Callable[[Table], list[str]] = as_lines) -> list[str]:
    """Write a run down, line by line.

    Args:
        results: of the run.
        write: makes the lines of a table.
    """
    lines = heading(results)
    for title, table in tables(results):
        lines += ["", f"{title}:", "", *write(table)]
    if aims := [(aim, reached(results, result, aim)) for result in results.cases.values() for aim in result.case.aims]:
        met = sum(value is not None and is_met(aim, value) for aim, value in aims)
        lines += ["", f"Aims that are met: {met} of {len(aims)}."]
    if found := problems(results):
        lines += ["", "Who did not run to the end:", "", *(f"- {problem}" for problem in found)]
    return lines


def heading(results: Results) -> list[str]:
    """Say what was measured, when, on which machine and with which versions."""
    settings, machine = results.settings, results.facts["machine"]
    versions = {name: version for name, version in results.facts["versions"].items() if " " not in name}
    memory = machine["memory_gib"] and f"{machine['memory_gib']} GiB"
    described = [machine["cpu"], f"{machine['cores']} cores", memory, machine["gpu"]]
    torch = [f"torch for {results.facts['torch']['cpu_capability']}"] if results.facts["torch"] else []
    steering = [f"{name}={value}" for name, value in results.facts["environment"].items()]
    libraries = "; ".join([*results.facts["blas"], *torch, *steering])
    return [
        f"Suite {settings['suite']} on {settings['device']}, {results.date}: {', '.join(filter(None, described))}.",
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
        *([f"{libraries}."] if libraries else []),
    ]


def problems(results: Results) -> list[str]:
    """Say why implementations have no figures, or not of all rounds, and in which cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for result in results.cases.values():
        for who, run in result.runs.items():
            if run.problem:
                cases.setdefault((who, run.problem), []).append(result.case.name)
    return [f"{who}: {problem} ({', '.join(names)})" for (who, problem), names in cases.items()]


def line_of(result: CaseResult) -> str:
    """Say in a line how a case came out: each one's median time, and its ratio to the reference's."""
    found = []
    for who, run in result.runs.items():
        seconds, compared = median(run), ratio(result, who)
        if seconds is None:
            found.append(f"{who} failed")
        elif who != MACHINE:
            found.append(f"{who} {duration(seconds)}" + (f" ({fraction(compared.median)})" if compared else ""))
    return f"{result.case.name}: {', '.join(found)}"


def case_table(cases: Sequence[Case]) -> Table:
    """List cases with who takes part and what is aimed at."""
    rows = [(case.name, ", ".join(case.implementations), described_aims(case)) for case in cases]
    return Table(("case", "measured", "aims"), rows, left=3)


def described_aims(case: Case) -> str:
    """Write the aims of a case, as in "time ≤ 0.35 torch, 0.5 numpy"."""
    by_figure: dict[str, list[str]] = {}
    for aim in case.aims:
        by_figure.setdefault(aim.figure, []).append(f"{aim.value:g} {aim.implementation}")
    return "; ".join(
        f"{figure} {'≥' if figure == 'share' else '≤'} {', '.join(aims)}" for figure, aims in by_figure.items()
    )


def as_markdown(table: Table) -> list[str]:
    """Write a table in Markdown, numbers at the right."""
    rule = ["---" if i < table.left else "---:" for i in range(len(table.header))]
    return [f"| {' | '.join(cells)} |" for cells in (table.header, rule, *table.rows)]
