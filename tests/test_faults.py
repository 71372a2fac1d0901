"""`verify` flags each fault of the suite at the right tensor and diagnoses it; spec/faults.md is up to date."""

import re
from pathlib import Path

import pytest
from fault_table import COLUMNS, NO_FAULT, Finding, cells_of, counts, finding, page, row, verify_fault
from faults import FAULTS

pytestmark = [pytest.mark.slow, pytest.mark.unwatched]

PAGE = Path(__file__).parents[1] / "spec" / "faults.md"
RHO = r"\b\d\.\de[+-]\d+\b"
DTYPES = ("float64", "float32", "bfloat16")
NUMBERS = pytest.mark.parametrize("number", [pytest.param(n, id=fault.name) for n, fault in enumerate(FAULTS)])


def written_rows() -> list[str]:
    """Return the page's rows, one for each fault."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| fault |")]


def test_the_suite_is_large() -> None:
    assert len(FAULTS) >= 200
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("shown", ["all", "states"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_fault_everything_passes(dtype: str, shown: str) -> None:
    for config in {str(fault.config): fault.config for fault in FAULTS}.values():
        assert verify_fault(NO_FAULT._replace(config=config), dtype, shown) == Finding(None, 0.0, ())


@NUMBERS
def test_a_fault_is_flagged_at_the_right_tensor_and_named(number: int) -> None:
    fault = FAULTS[number]
    for dtype in DTYPES:
        seen = finding(number, dtype)
        assert seen.where == (fault.where if dtype in fault.seen_in else None), dtype
        if dtype != "bfloat16":
            expected = (fault.diagnosis,) if fault.diagnosis and dtype in fault.seen_in else ()
            assert seen.diagnoses[:1] == expected, dtype
    # As the page says, except for rho: rounding differs between machines.
    ran, written = row(number), written_rows()[number]
    assert re.split(RHO, ran) == re.split(RHO, written)
    sizes = [[float(rho) for rho in re.findall(RHO, text)] for text in (ran, written)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.3)


def test_the_page_has_these_rows_and_the_counts_that_follow() -> None:
    assert page(written_rows()) == PAGE.read_text(encoding="utf-8")


def test_the_aims_are_reached() -> None:
    visible = [number for number, fault in enumerate(FAULTS) if "float32" in fault.seen_in]
    rows = written_rows()
    for column, least in ((3, 0.95), (6, 0.75)):
        texts = counts([cells_of(rows[number])[column] for number in visible])
        seen, shown, right, named, wrong = (int(number) for number in re.findall(r"\d+", texts))
        assert (seen, right, wrong) == (shown, shown, 0), (COLUMNS[column], texts)
        assert named >= least * seen, (COLUMNS[column], texts)
