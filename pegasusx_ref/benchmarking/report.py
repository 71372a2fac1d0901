"""The report of a run: what was measured on which machine, the tables, the aims, and the failures."""

from collections.abc import Callable, Sequence
from typing import Any

from pegasusx_ref.benchmarking.cases import BACKENDS, MACHINE, OTHERS, TRANSFORMERS, Case
from pegasusx_ref.benchmarking.results import CaseResult, Results, summarize
from pegasusx_ref.rendering.tables import Table, as_lines, scaled, size

UNSTABLE = "its ratios differ too much between the rounds, because the machine was loaded: run the command again"
Summary = dict[str, Any]  # of an implementation in a case; see `summary_of`
Summaries = dict[str, dict[str, Summary]]  # by case and implementation


def report(results: Results, write: Callable[[Table], list[str]] = as_lines) -> list[str]:
    """Write the lines of a report.

    Args:
        results: of the run.
        write: formats a table as lines.
    """
    summaries = summarize(results)
    lines = heading(results)
    for title, table in tables(results, summaries):
        lines += ["", f"{title}:", "", *write(table)]
    if met := [aim["met"] for by_name in summaries.values() for one in by_name.values() for aim in one["aims"]]:
        lines += ["", f"Aims met: {sum(met)} of {len(met)}."]
    if failed := failures(results):
        lines += ["", "Failed or incomplete:", "", *(f"- {failure}" for failure in failed)]
    return lines


def heading(results: Results) -> list[str]:
    """Describe the suite, the date, the machine, the versions and the library settings."""
    settings, facts, machine = results.settings, results.facts, results.facts["machine"]
    versions = [f"{name} {version}" for name, version in facts["versions"].items() if " " not in name]
    memory = machine["memory_gib"] and f"{machine['memory_gib']} GiB"
    hardware = filter(None, [machine["cpu"], f"{machine['cores']} cores", memory, machine["gpu"]])
    torch = [f"torch for {facts['torch']['cpu_capability']}"] if facts["torch"] else []
    libraries = [*facts["blas"], *torch, *(f"{name}={value}" for name, value in facts["environment"].items())]
    return [
        f"Suite {settings['suite']} on {settings['device']}, {results.date}: {', '.join(hardware)}.",
        f"{', '.join(versions)}.",
        *([f"{'; '.join(libraries)}."] if libraries else []),
    ]


def tables(results: Results, summaries: Summaries) -> list[tuple[str, Table]]:
    """Return the titled tables that have rows."""
    measured = {case: by_name for case, by_name in summaries.items() if any(one["memory"] for one in by_name.values())}
    start = {case: str(of.case.grows_from) for case, of in results.cases.items() if of.case.grows_from}
    lengthened = {case: summaries[case] for case in start}
    others = {case: by_name for case, by_name in summaries.items() if {*OTHERS} & {*by_name}}
    shared = {case: by_name for case, by_name in summaries.items() if MACHINE in by_name}
    machine = {case: rate(by_name[MACHINE]) for case, by_name in shared.items()}
    compared = ("ratio", "range", "aim")

    def time(one: Summary) -> list[str]:
        *cells, aim = compared_cells(one, "time", one["seconds"], duration)
        return [*cells, aim or aim_cell(one, "seconds")]

    def memory(one: Summary) -> list[str]:
        return compared_cells(one, "memory", one["memory"], lambda peak: size(round(peak)))

    def growth(one: Summary) -> list[str]:
        return ["" if one["growth"] is None else f"{one['growth']:.2f}", aim_cell(one, "growth")]

    def memory_growth(one: Summary) -> list[str]:
        return ["" if one["memory_growth"] is None else f"{one['memory_growth']:.2f}", aim_cell(one, "memory growth")]

    def rates(one: Summary) -> list[str]:
        share = "" if one["share"] is None else f"{100 * one['share']:.0f} %"
        return [rate(one), share, aim_cell(one, "share")]

    titled = {
        "Rate of matrix products or of necessary memory reads, and its share of the machine's limit": table(
            shared, ("share", "aim"), rates, (MACHINE, machine)
        ),
        "Time, per token for decoding; ratio to the first, round by round": table(summaries, compared, time),
        "Time of other implementations; ratio to that of transformers": table(
            others, ("ratio",), lambda one: time(one)[:2], implementations=OTHERS
        ),
        "Peak memory above what was allocated before": table(measured, compared, memory),
        "Growth of time with the length": table(lengthened, ("aim",), growth, ("from tokens", start)),
        "Growth of peak memory with the length": table(lengthened, ("aim",), memory_growth, ("from tokens", start)),
    }
    return [(title, table) for title, table in titled.items() if table.rows]


def table(
    summaries: Summaries,
    headings: Sequence[str],
    cells: Callable[[Summary], list[str]],
    second: tuple[str, dict[str, str]] = ("", {}),
    implementations: Sequence[str] = (TRANSFORMERS, *BACKENDS),
) -> Table:
    """Make a table with a row per case and columns per implementation, without empty columns.

    Args:
        summaries: by case and implementation.
        headings: of an implementation's columns after the first, which is headed by its name.
        cells: writes an implementation's columns.
        second: heading of the table's second column, and its cells by case.
        implementations: those of the table, if any case has them.
    """
    names = [name for name in implementations if any(name in by_name for by_name in summaries.values())]
    header = ["case", second[0], *(heading for name in names for heading in (name, *headings))]
    rows = []
    for case, by_name in summaries.items():
        row = [case, second[1].get(case, "")]
        for name in names:
            row += cells(by_name[name]) if name in by_name else [""] * (1 + len(headings))
        rows.append(row)
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return Table([header[i] for i in used], [[row[i] for i in used] for row in rows])


def compared_cells(summary: Summary, metric: str, value: float | None, write: Callable[[float], str]) -> list[str]:
    """Write a value of "time" or "memory", and its ratio, range and aim."""
    found, ratio = ["failed" if summary["seconds"] is None else "-", "", ""], summary[f"{metric}_ratio"]
    if value is not None:
        found[0] = write(value)
    if ratio is not None:
        found[1:] = [fraction(ratio["median"]), f"{fraction(ratio['lowest'])}–{fraction(ratio['highest'])}"]
    return [*found, aim_cell(summary, metric)]


def aim_cell(summary: Summary, metric: str) -> str:
    """Write the aim for a metric and whether it was met; empty without an aim."""
    for aim in summary["aims"]:
        if aim["figure"] == metric:
            return f"{aim['aim']:g} {'-' if aim['reached'] is None else '✓' if aim['met'] else '✗'}"
    return ""


def rate(summary: Summary) -> str:
    """Write work per second; empty where it is unknown."""
    units = [f" {prefix}{summary['unit']}" for prefix in ("", *"kMGTPE")]
    return "" if summary["rate"] is None else scaled(round(summary["rate"]), 1000, units)


def fraction(value: float) -> str:
    """Write a ratio with two or three digits."""
    return f"{value:.{3 if value < 0.0995 else 2}f}"


def duration(seconds: float) -> str:
    """Write a time in seconds or milliseconds with three digits."""
    value, unit = (seconds, "s") if seconds >= 1 else (1e3 * seconds, "ms")
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def failures(results: Results) -> list[str]:
    """List why implementations have no, too few or useless rounds, with the cases of each reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for result in results.cases.values():
        for name, run in result.runs.items():
            if run.problem:
                cases.setdefault((name, run.problem), []).append(result.case.name)
        for name in result.unstable:
            cases.setdefault((name, UNSTABLE), []).append(result.case.name)
    return [f"{name}: {problem} ({', '.join(names)})" for (name, problem), names in cases.items()]


def case_line(result: CaseResult) -> str:
    """Write each implementation's median time, and its ratio to the reference's, in one line."""
    found = []
    for name, run in result.runs.items():
        seconds, ratio = run.median(), result.ratio(name)
        if seconds is None:
            found.append(f"{name} failed")
        elif name != MACHINE:
            found.append(f"{name} {duration(seconds)}" + (f" ({fraction(ratio.median)})" if ratio else ""))
    return f"{result.case.name}: {', '.join(found)}"


def case_table(cases: Sequence[Case]) -> Table:
    """List cases with their implementations and aims, the aims as in "time ≤ 0.35 torch, 0.5 numpy"."""
    rows = []
    for case in cases:
        limits: dict[str, list[str]] = {}
        for aim in case.aims:
            limits.setdefault(f"{aim.figure} {'≥' if aim.figure == 'share' else '≤'}", []).append(
                f"{aim.value:g} {aim.implementation}"
            )
        aims = "; ".join(f"{figure} {', '.join(of)}" for figure, of in limits.items())
        rows.append((case.name, ", ".join(case.implementations), aims))
    return Table(("case", "measured", "aims"), rows, left=3)


def as_markdown(table: Table) -> list[str]:
    """Write a table in Markdown, numbers aligned to the right."""
    rule = ["---" if i < table.left else "---:" for i in range(len(table.header))]
    return [f"| {' | '.join(cells)} |" for cells in (table.header, rule, *table.rows)]
