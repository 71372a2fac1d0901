"""`verify` finds each fault of the suite where it is, and names it where its mistake is known; spec/faults.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import suffixes
from fault_table import COMMAND, NOTHING, Found, fault_table, found, found_in
from faults import FAULTS

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
def _names_are_watched_elsewhere() -> Iterator[None]:
    """The same code runs some three hundred times here, and in half the time if nobody looks at its names."""
    with suffixes.unwatched():
        yield


def test_the_suite_is_large() -> None:
    assert len(FAULTS) >= 100
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_fault_all_is_right(dtype: str) -> None:
    for config in {str(fault.config): fault.config for fault in FAULTS}.values():
        assert found_in(NOTHING._replace(config=config), dtype) == Found(None, 0.0, ())


@pytest.mark.parametrize(("number", "dtype"), cases(DTYPES))
def test_a_fault_is_flagged_where_it_is(number: int, dtype: str) -> None:
    fault = FAULTS[number]
    assert found(number, dtype).where == (fault.where if dtype in fault.seen_in else None)


@pytest.mark.parametrize(("number", "dtype"), cases(DTYPES[:2]))
def test_a_mistake_that_is_known_is_named_and_no_other(number: int, dtype: str) -> None:
    fault = FAULTS[number]
    expected = (fault.mistake,) if fault.mistake and dtype in fault.seen_in else ()
    assert found(number, dtype).mistakes[:1] == expected


def test_the_page_is_what_a_run_finds() -> None:
    """To the letter, but for ρ: rounding differs between backend_parameters."""
    written, ran = PAGE.read_text(encoding="utf-8"), fault_table()
    assert re.split(RHO, written) == re.split(RHO, ran), f"what is found has changed: {COMMAND}"
    sizes = [[float(rho) for rho in re.findall(RHO, page)] for page in (written, ran)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.3), f"what is found has changed: {COMMAND}"
    assert len(sizes[0]) > 150
