"""The short form of the fuzzing suite: what once did harm, and some damage of every kind.

The long form judges 100,000 inputs in worker processes, which survive crashes: python tests/fuzz/run.py
"""

import sys
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("torch", reason="torch is not installed: files of torch.save are damaged too")
if not sys.platform.startswith("linux"):
    pytest.skip("the peak of the memory is measured by /proc", allow_module_level=True)

from fuzz import arguments, cases
from fuzz.cases import READERS
from fuzz.known import ARGUMENTS, FILES
from fuzz.oracle import REFUSED

NAMED_FILES, RANDOM_FILES = 8, 12  # of each reader
ARGUMENTS_OF_A_CALL = 1


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "valid"
    cases.prepare(folder)
    return folder


def judged(names: list[str], folder: Path, valid: Path) -> Counter[str]:
    """Judge cases; fail with the names of all whose outcome is neither a result nor an error of the package."""
    sys.setprofile(None)  # the watch on array names, which takes most of the time that is judged here
    outcomes = {name: cases.judge_case(name, folder, valid) for name in names}
    findings = [f"{name}: {outcome}" for name, outcome in outcomes.items() if outcome.startswith("FINDING")]
    assert not findings, "\n".join(findings)
    return Counter(outcomes.values())


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_that_once_did_harm(tmp_path: Path, valid: Path, name: str) -> None:
    judged([name], tmp_path, valid)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_that_once_did_harm(tmp_path: Path, valid: Path, name: str) -> None:
    judged([name], tmp_path, valid)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused(tmp_path: Path, valid: Path, reader: str) -> None:
    rng = Random(zlib.crc32(reader.encode()))
    kinds = [kind for kind in cases.kinds_of_damage() if kind.startswith(f"{reader}/")]
    random = [kind for kind in kinds if kind.rsplit("/", 1)[1] in cases.RANDOM]
    chosen = rng.sample(kinds, min(NAMED_FILES, len(kinds))) + rng.choices(random, k=RANDOM_FILES)
    assert judged([f"{kind}/{rng.randrange(2**32)}" for kind in chosen], tmp_path, valid)[REFUSED]


@pytest.mark.slow
def test_hostile_arguments_give_results_or_errors(tmp_path: Path, valid: Path) -> None:
    rng, kinds = Random(0), arguments.all_kinds()
    of_call = {call: [kind for kind in kinds if kind.startswith(f"argument/{call}/")] for call in arguments.CALLS}
    chosen = [kind for group in of_call.values() for kind in rng.sample(group, ARGUMENTS_OF_A_CALL)]
    judged([f"{kind}/0" for kind in chosen], tmp_path, valid)
