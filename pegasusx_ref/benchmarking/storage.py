"""The results file: JSON, complete after every case, and resumed by a later run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pegasusx_ref.benchmarking.facts import differences
from pegasusx_ref.benchmarking.report import report
from pegasusx_ref.benchmarking.results import CaseResult, Results, summarize
from pegasusx_ref.checkpoint.settings import Limits
from pegasusx_ref.errors import InputError
from pegasusx_ref.files.json_files import read_json
from pegasusx_ref.files.reading import reading
from pegasusx_ref.files.writing import write_text

FORMAT = 1
TOKENS = Limits(0, 2**20, "64 times the published input length")
REMEDY = "use --fresh to start anew or --out to name another file"


def write_results(path: Path, results: Results) -> None:
    """Write results and the metrics derived from them; a reader never sees half a file.

    Raises:
        OutputError: the file cannot be written.
    """
    entries = {"format": FORMAT} | dataclasses.asdict(results) | {"summary": summarize(results)}
    write_text(path, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


def read_results(path: Path) -> Results:
    """Read a file that `write_results` wrote.

    Raises:
        InputError: the file does not exist or is not a results file.
    """
    with reading(path, "a results file of pegasusx-ref bench", InputError, REMEDY):
        entries = read_json(path)
        if entries.pop("format") != FORMAT:
            raise ValueError(f"the format is not {FORMAT}")
        entries.pop("summary")
        cases = {name: CaseResult.from_dict(result) for name, result in entries.pop("cases").items()}
        for result in cases.values():
            TOKENS.check("tokens", result.case.tokens)
        results = Results(cases=cases, **entries)
        report(results)  # fails where an entry that the report needs is missing or invalid
        return results


def resume_results(
    path: Path, settings: dict[str, Any], facts: dict[str, Any], command: str, fresh: bool = False
) -> Results:
    """Read the file that a run continues, or start empty results where there is none.

    Args:
        path: of the file.
        settings: of this run.
        facts: collected now.
        command: the command line.
        fresh: ignore an existing file.

    Raises:
        InputError: the file is not a results file, or was measured with other settings or facts.
    """
    new = Results(settings, facts, command)
    if fresh or not path.exists():
        return new
    results = read_results(path)
    if not results.cases and not results.extra:
        return new
    if changed := [*differences(results.settings, settings), *differences(results.facts, facts)]:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(f"{path} was measured under other conditions ({'; '.join(changed[:3])}{more}): {REMEDY}")
    return results
