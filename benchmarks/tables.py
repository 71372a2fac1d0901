"""Write the tables of README.md and benchmarks/results/README.md from the results files of `pegasusx-ref bench`.

python benchmarks/tables.py            # after a measurement: cpu-PROCESSOR.json in benchmarks/results
python benchmarks/tables.py --check    # whether the pages hold what the files say

A table stands between two comments, `<!-- table: NAME -->` and `<!-- end of table -->`. NAME is "processors", the
comparison of all files cpu-*.json by the suite's present aims, or a file, for its whole report.
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pegasusx_ref.benchmarking.cases import TRANSFORMERS, Aim
from pegasusx_ref.benchmarking.report import Summaries, as_markdown, duration, fraction, report
from pegasusx_ref.benchmarking.results import Results, summarize
from pegasusx_ref.benchmarking.storage import read_results
from pegasusx_ref.benchmarking.suites import SUITES
from pegasusx_ref.rendering.tables import Table, size

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", RESULTS / "README.md")
PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
OURS = ("torch", "numpy")
ROWS = (  # label, case, and the figure of each column
    ("large encoder, 4,096 tokens", "encoder-large-4096", "share"),
    ("large encoder, 16,384 tokens", "encoder-large-16384", "share"),
    ("its peak memory above the weights", "encoder-large-16384", "memory"),
    ("base encoder, 4,096 tokens, bfloat16", "encoder-base-4096-bf16", "share"),
    ("base encoder, 131,072 tokens: time / that of 16,384", "encoder-base-131072", "growth"),
    ("a token of the large decoder, 4,096 tokens, 1 beam", "decoder-large-4096-1-beam", "share"),
    ("the same, 8 beams", "decoder-large-4096-8-beams", "share"),
    ("16 texts of 500 tokens, base, 4 beams", "texts-base-500-4-beams-batch-16", "time"),
    ("a short text with a tiny model", "texts-tiny-40-4-beams", "time"),
    ("a sentence, process start to end", "start-demo", "seconds"),
    ("loading the large checkpoint", "load-large", "time"),
)
AIMS = {case.name: case.aims for case in SUITES["cpu"]}


def processors() -> Table:
    """Compare the processors: transformers' value, each backend's ratio to it, and the shares of the limit."""
    files = [read_results(path) for path in sorted(RESULTS.glob("cpu-*.json"))]
    header = [""]
    for results in files:
        header += [f"{short_name(results)}: transformers", *(f"`{name}`" for name in OURS)]
    summaries = [summarize(results) for results in files]
    rows = [[label, *cells(summaries, case, figure), aims(case, figure)] for label, case, figure in ROWS]
    return Table([*header, "aim"], rows)


def short_name(results: Results) -> str:
    """Return the name of a file's processor without trade marks."""
    cpu: str = results.facts["machine"]["cpu"]
    return cpu.replace("(R)", "").replace(" Processor", "")


def cells(files: Iterable[Summaries], case: str, figure: str) -> list[str]:
    """Write a row's cells of each file."""
    names = (TRANSFORMERS, *OURS)
    return [cell(summaries.get(case, {}).get(name), case, figure, name) for summaries in files for name in names]


def cell(summary: Any, case: str, figure: str, name: str) -> str:
    """Write a cell: bold where the suite's present aim is missed."""
    if summary is None or summary["seconds"] is None:
        return ""
    reached: dict[str, float | None] = {name: summary[name] for name in ("share", "growth", "seconds")}
    reached |= {name: ratio and ratio["median"] for name in ("time", "memory") for ratio in [summary[f"{name}_ratio"]]}
    if figure in ("growth", "seconds"):
        parts = ["" if reached[figure] is None else f"{reached[figure]:.2f}" + (" s" if figure == "seconds" else "")]
    elif figure == "memory":
        parts = [size(summary["memory"]) if reached["memory"] is None else fraction(reached["memory"])]
    else:
        parts = [duration(summary["seconds"]) if reached["time"] is None else fraction(reached["time"])]
    if figure == "share" and reached["share"] is not None:
        parts.append(f"{100 * reached['share']:.0f} %")
    text = ", ".join(parts)
    missed = [aim for aim in of_case(case, figure) if aim.implementation == name and not aim.is_met(reached[figure])]
    return f"**{text}**" if missed and text else text


def aims(case: str, figure: str) -> str:
    """Write the aims of a row, torch's and numpy's."""
    written = [f"{100 * aim.value:.0f} %" if figure == "share" else f"{aim.value:g}" for aim in of_case(case, figure)]
    return " / ".join(written)


def of_case(case: str, figure: str) -> list[Aim]:
    """Select the suite's present aims for a figure."""
    return [aim for aim in AIMS[case] if aim.figure == figure]


def table(name: str) -> str:
    """Return the text of a place."""
    if name == "processors":
        return "\n".join(as_markdown(processors())) + "\n"
    return "\n".join(report(read_results(RESULTS / name), as_markdown)) + "\n"


def filled(page: str) -> str:
    """Return a page with its tables written again."""
    return PLACE.sub(lambda match: match[1] + table(match[2]) + match[3], page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a page differs from the files")
    check = parser.parse_args().check
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if (new := filled(page)) != page:
            if check:
                raise SystemExit(f"{path}: its tables differ from the results files: run python benchmarks/tables.py")
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
