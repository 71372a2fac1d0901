"""Results as a JSON file, which is whole after every case, and which a later run goes on with."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pegasusx_ref.benchmarking.comparing import summary
from pegasusx_ref.benchmarking.facts import differences
from pegasusx_ref.benchmarking.report import report
from pegasusx_ref.benchmarking.results import CaseResult, Results
from pegasusx_ref.checkpoint.files import replacing
from pegasusx_ref.errors import InputError, PegasusXError

FORMAT = 1
REMEDY = "--fresh starts anew, --out names another file"


def write_results(path: Path, results: Results) -> None:
    """Write a file, with what follows from the repetitions beside them; at no time is there half of one.

    Raises:
        InputError: it cannot be written.
    """
    entries = {"format": FORMAT} | dataclasses.asdict(results) | {"summary": summary(results)}
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}): --out names another file") from None


def read_results(path: Path) -> Results:
    """Read what `write_results` has written.

    Raises:
        InputError: there is no such file, or it is of another kind.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if entries.pop("format") != FORMAT:
            raise ValueError("another format")
        entries.pop("summary")
        cases = {name: CaseResult.from_dict(result) for name, result in entries.pop("cases").items()}
        results = Results(cases=cases, **entries)
        report(results)  # whatever it needs is there
        return results
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, PegasusXError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a file of pegasusx-ref bench ({what}): {REMEDY}") from None


def resumed(path: Path, settings: dict[str, Any], facts: dict[str, Any], command: str, fresh: bool = False) -> Results:
    """Go on with a file, or begin one where there is none.

    Args:
        path: the file.
        settings: of this run.
        facts: of this moment.
        command: that was called.
        fresh: do not go on with what is there.

    Raises:
        InputError: the file is of another kind, or was measured by other settings or under other facts.
    """
    if fresh or not path.exists():
        return Results(settings, facts, command)
    results = read_results(path)
    if not results.cases and not results.extra:
        return Results(settings, facts, command)
    if changed := [*differences(results.settings, settings), *differences(results.facts, facts)]:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(f"{path} was measured otherwise ({'; '.join(changed[:3])}{more}): {REMEDY}")
    return results
