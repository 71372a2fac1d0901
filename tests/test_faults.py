"""`verify` flags each fault of the suite at the right tensor and diagnoses it; spec/faults.md is up to date."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import suffixes
from fault_table import COMMAND, NO_FAULT, Finding, fault_table, finding, verify_fault
from faults import FAULTS

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[1] / "spec" / "faults.md"
RHO = r"\b\d\.\de[+-]\d+\b"
DTYPES = ("float64", "float32", "bfloat16")


def cases(dtypes: tuple[str, ...]) -> list[Any]:
    """List faults by number, in each dtype."""
    return [
        pytest.param(number, dtype, id=f"{fault.name}-{dtype}")
        for number, fault in enumerate(FAULTS)
        for dtype in dtypes
    ]


# --- the suite


@pytest.fixture(scope="module", autouse=True)
def _unwatched_suffixes() -> Iterator[None]:
    """Skip the check of dimension suffixes: other tests run the same code, and it doubles the time."""
    with suffixes.unwatched():
        yield


def test_the_suite_is_large() -> None:
    assert len(FAULTS) >= 100
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_fault_everything_passes(dtype: str) -> None:
    for config in {str(fault.config): fault.config for fault in FAULTS}.values():
        assert verify_fault(NO_FAULT._replace(config=config), dtype) == Finding(None, 0.0, ())


@pytest.mark.parametrize(("number", "dtype"), cases(DTYPES))
def test_a_fault_is_flagged_at_the_right_tensor(number: int, dtype: str) -> None:
    fault = FAULTS[number]
    assert finding(number, dtype).where == (fault.where if dtype in fault.seen_in else None)


@pytest.mark.parametrize(("number", "dtype"), cases(DTYPES[:2]))
def test_a_known_bug_is_the_first_diagnosis(number: int, dtype: str) -> None:
    fault = FAULTS[number]
    expected = (fault.diagnosis,) if fault.diagnosis and dtype in fault.seen_in else ()
    assert finding(number, dtype).diagnoses[:1] == expected


def test_the_page_equals_a_new_run() -> None:
    """Exactly, except for ρ: rounding differs between machines."""
    written, ran = PAGE.read_text(encoding="utf-8"), fault_table()
    assert re.split(RHO, written) == re.split(RHO, ran), f"the findings have changed: {COMMAND}"
    sizes = [[float(rho) for rho in re.findall(RHO, page)] for page in (written, ran)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.3), f"the findings have changed: {COMMAND}"
    assert len(sizes[0]) > 150
