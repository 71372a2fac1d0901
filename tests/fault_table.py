"""Runs the suite of faults and writes what was found: python tests/fault_table.py > spec/faults.md."""

import copy
from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from backend_parameters import reference
from fault_injection import torch
from faults import FAULTS, SUITE, Fault, exact_positions
from hf_reference import eager_hf_reference

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.verification import from_transformers, verify

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed: faults are put into it")

COMMAND = "python tests/fault_table.py > spec/faults.md"
CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
# Blocks of 8: the last one is not full, a staggered layer has one more, padding begins inside of blocks. The target
# starts with padding's id, as PEGASUS-X's do, and has rows enough to tell another matrix.
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (3, 29)),
    "attention_mask": np.arange(29) < np.array([[29], [17], [11]]),
    "decoder_input_ids": np.c_[
        np.zeros((3, 1), dtype=np.int64), _rng.integers(106, 256, (3, 14))
    ],  # rows enough for a matrix
}
NOTHING = Fault("nothing is broken", "")


class Found(NamedTuple):
    """What `verify` says of a fault: the first wrong tensor, how far beyond rounding, and what mistakes explain it."""

    where: str | None
    rho: float
    mistakes: tuple[str, ...]


@cache
def right_models(changes: tuple[tuple[str, Any], ...], dtype: str) -> tuple[PegasusXForConditionalGeneration, Any]:
    """Build the golden model and its twin, in which nothing is wrong: transformers' positions are made exact."""
    golden = reference(CONFIG.replace(**dict(changes)), 0, dtype)
    twin = eager_hf_reference(transformers, golden, dtype)
    for side in ("encoder", "decoder"):
        exact_positions(side)(twin)
    return golden, twin


@contextmanager
def torch_that_repeats() -> Iterator[None]:
    """Seed what is drawn. Tensors are so small that a second thread only waits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(num_threads)


def found_in(fault: Fault, dtype: str) -> Found:
    """Verify a candidate with a fault."""
    golden, twin = right_models(tuple(fault.config.items()), dtype)
    with torch_that_repeats():
        if fault.model is not None:
            twin = copy.deepcopy(twin)
            fault.model(twin)
        tensors: Any = from_transformers(twin)(INPUTS)
        if fault.dump is not None:
            tensors = ChainMap({fault.where: fault.dump(tensors[fault.where], tensors)}, tensors)
        report = verify(golden, tensors, INPUTS, dtype)
    first, mistakes = report.first_failure, tuple(diagnosis.mistake for diagnosis in report.diagnoses)
    return Found(None, 0.0, ()) if first is None else Found(first.name, first.rho, mistakes)


@cache
def found(number: int, dtype: str) -> Found:
    """Verify with a fault of the suite, once."""
    return found_in(FAULTS[number], dtype)


# --- the page

PAGE = """\
# The suite of faults

`verify` ([16.8](16-trace-points.md#168-verifying-another-implementation)) is worth what it finds. Here it is given
{total} implementations with a single mistake each, distinct in kind: {live} in a live transformers model,
{stored} in tensors that were stored. The model is tiny: 2 + 2 layers, blocks of 8, 4 global tokens, random
weights; the batch has texts of 29, 17 and 11 tokens. transformers computes positions in the model's
dtype, which is a fault too, so they are made exact wherever another fault is put in.

The page is what a run found; a test makes it again and compares. It was written by

    {command}

"First wrong tensor" is where a fault must be flagged first, which follows from what is broken; where `verify` flags
another one, the table says so. ρ tells how far beyond rounding the tensor is
([16.11](16-trace-points.md#1611-verdicts)); below 6, single numbers are wrong. "Named" is the first
diagnosis ([16.13](16-trace-points.md#1613-diagnosis)), or – where no mistake that is known explains the error.

{counts}
"""
HEADER = (
    "| fault | first wrong tensor | ρ float32 | named in float32 | ρ bfloat16 | named in bfloat16 |",
    "|---|---|---|---|---|---|",
)
NOT_VISIBLE = "not visible: smaller than what {dtype} rounds"


def fault_table() -> str:
    """Write the page."""
    numbers = iter(range(len(FAULTS)))
    sections = []
    for title, faults in SUITE.items():
        rows = [row(next(numbers)) for _ in faults]
        sections.append("\n".join([f"## {title}", "", *HEADER, *rows, ""]))
    stored = sum(fault.dump is not None for fault in FAULTS)
    page = PAGE.format(
        total=len(FAULTS),
        live=len(FAULTS) - stored,
        stored=stored,
        command=COMMAND,
        counts="\n".join(f"- {counts(dtype)}" for dtype in ("float32", "bfloat16")),
    )
    return "\n".join([page, *sections])


def row(number: int) -> str:
    """Write what was found of one fault."""
    fault = FAULTS[number]
    single, half = (found(number, dtype) for dtype in ("float32", "bfloat16"))
    cells = [fault.name, f"`{fault.where}`"]
    for dtype, seen in (("float32", single), ("bfloat16", half)):
        if seen.where is None:
            cells += [NOT_VISIBLE.format(dtype=dtype), ""]
            continue
        elsewhere = "" if seen.where == fault.where else f", flagged at `{seen.where}`"
        cells += [size(seen.rho) + elsewhere, seen.mistakes[0] if seen.mistakes else "–"]
    if cells[5] == cells[3] != "–":
        cells[5] = "the same"
    return f"| {' | '.join(cells)} |"


def size(rho: float) -> str:
    """Say how large a ratio is; what is no larger than rounding itself differs from machine to machine."""
    return "< 6" if rho <= 6 else "∞" if rho == np.inf else f"{rho:.1e}"


def counts(dtype: str) -> str:
    """Sum up an arithmetic."""
    results = [(fault, found(number, dtype)) for number, fault in enumerate(FAULTS)]
    seen = [(fault, result) for fault, result in results if result.where is not None]
    there = sum(result.where == fault.where for fault, result in seen)
    known = [(fault, result) for fault, result in seen if fault.mistake is not None]
    named = sum(result.mistakes[:1] == (fault.mistake,) for fault, result in known)
    return (
        f"{dtype}: {len(seen)} of {len(results)} are detected, {there} of them flagged first where they are; of the "
        f"{len(known)} whose mistake is known {named} are named."
    )


if __name__ == "__main__":
    print(fault_table(), end="")
