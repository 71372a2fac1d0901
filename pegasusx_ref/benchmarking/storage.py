"""The results file: JSON, complete after every case, and resumed by a later run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pegasusx_ref.benchmarking.facts import differences
from pegasusx_ref.benchmarking.report import report
from pegasusx_ref.benchmarking.results import CaseResult, Results, summarize
from pegasusx_ref.checkpoint.files import replacing
from pegasusx_ref.errors import InputError, PegasusXError

FORMAT = 1
REMEDY = "use --fresh to start anew or --out to name another file"


def write_results(path: Path, results: Results) -> None:
    """Write results and the metrics derived from them; a reader never sees half a file.

    Raises:
        InputError: the file cannot be written.
    """
    entries = {"format": FORMAT} | dataclasses.asdict(results) | {"summary": summarize(results)}
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}): --out names another file") from None


def read_results(path: Path) -> Results:
    """Read a file that `write_results` wrote.

    Raises:
        InputError: the file does not exist or is not a results file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if entries.pop("format") != FORMAT:
            raise ValueError(f"the format is not {FORMAT}")
        entries.pop("summary")
        cases = {name: CaseResult.from_dict(result) for name, result in entries.pop("cases").items()}
        results = Results(cases=cases, **entries)
        report(results)  # fails where an entry that the report needs is missing or invalid
        return results
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, PegasusXError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a results file of pegasusx-ref bench ({reason}): {REMEDY}") from None


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
