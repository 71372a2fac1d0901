"""Run the suite of faults and print the page of results: python tests/fault_table.py > spec/faults.md."""

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

transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed: faults are injected into it"
)

COMMAND = "python tests/fault_table.py > spec/faults.md"
CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
# Blocks of 8: the last one is not full, a staggered layer has one more, padding starts inside a block. The target
# starts with the padding id, as in PEGASUS-X, and has enough rows for the fit of a matrix.
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (3, 29)),
    "attention_mask": np.arange(29) < np.array([[29], [17], [11]]),
    "decoder_input_ids": np.c_[np.zeros((3, 1), dtype=np.int64), _rng.integers(106, 256, (3, 14))],
}
NO_FAULT = Fault("no fault", "")


class Finding(NamedTuple):
    """What `verify` finds: the first wrong tensor, its rho, and the diagnoses."""

    where: str | None
    rho: float
    diagnoses: tuple[str, ...]


@cache
def right_models(changes: tuple[tuple[str, Any], ...], dtype: str) -> tuple[PegasusXForConditionalGeneration, Any]:
    """Build the golden model, and the same model in transformers with exact positions."""
    golden = reference(CONFIG.replace(**dict(changes)), 0, dtype)
    hf_model = eager_hf_reference(transformers, golden, dtype)
    for side in ("encoder", "decoder"):
        exact_positions(side)(hf_model)
    return golden, hf_model


@contextmanager
def deterministic_torch() -> Iterator[None]:
    """Seed torch, and use one thread: the tensors are too small for two."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(num_threads)


def verify_fault(fault: Fault, dtype: str) -> Finding:
    """Verify a candidate with a fault."""
    golden, hf_model = right_models(tuple(fault.config.items()), dtype)
    with deterministic_torch():
        if fault.model is not None:
            hf_model = copy.deepcopy(hf_model)
            fault.model(hf_model)
        tensors: Any = from_transformers(hf_model)(INPUTS)
        if fault.dump is not None:
            tensors = ChainMap({fault.where: fault.dump(tensors[fault.where], tensors)}, tensors)
        report = verify(golden, tensors, INPUTS, dtype)
    first, diagnoses = report.first_failure, tuple(diagnosis.mistake for diagnosis in report.diagnoses)
    return Finding(None, 0.0, ()) if first is None else Finding(first.name, first.rho, diagnoses)


@cache
def finding(number: int, dtype: str) -> Finding:
    """Verify with a fault of the suite, once."""
    return verify_fault(FAULTS[number], dtype)


# --- the page

PAGE = """\
# The suite of faults

This page lists what `verify` ([16.8](16-trace-points.md#168-verifying-another-implementation)) finds in {total}
implementations with one fault each, all of different kinds: {live} in a live transformers model, {stored} in stored
tensors. The model is tiny: 2 + 2 layers, blocks of 8, 4 global tokens, random weights; the batch has texts of 29, 17
and 11 tokens. transformers computes positions in the model's dtype, which is a fault too: with any other fault,
positions are exact.

A test compares the page with a new run. It was written by

    {command}

"First wrong tensor" is the tensor that must be flagged first, which follows from the fault; where `verify` flags
another one, the table says so. ρ is the ratio of the tensor's error to its expected rounding error
([16.11](16-trace-points.md#1611-verdicts)); below 6, only single elements are wrong. "Diagnosis" is the first likely
bug ([16.13](16-trace-points.md#1613-diagnosis)), or – where no known bug explains the error.

{counts}
"""
HEADER = (
    "| fault | first wrong tensor | ρ float32 | diagnosis in float32 | ρ bfloat16 | diagnosis in bfloat16 |",
    "|---|---|---|---|---|---|",
)
NOT_VISIBLE = "not visible: smaller than {dtype} rounding"


def fault_table() -> str:
    """Format the page."""
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
    """Format the finding for one fault."""
    fault = FAULTS[number]
    findings = {dtype: finding(number, dtype) for dtype in ("float32", "bfloat16")}
    cells = [fault.name, f"`{fault.where}`"]
    for dtype, seen in findings.items():
        if seen.where is None:
            cells += [NOT_VISIBLE.format(dtype=dtype), ""]
            continue
        elsewhere = "" if seen.where == fault.where else f", flagged at `{seen.where}`"
        cells += [size(seen.rho) + elsewhere, seen.diagnoses[0] if seen.diagnoses else "–"]
    if cells[5] == cells[3] != "–":
        cells[5] = "the same"
    return f"| {' | '.join(cells)} |"


def size(rho: float) -> str:
    """Format rho; a value that is no larger than rounding differs between machines."""
    return "< 6" if rho <= 6 else "∞" if rho == np.inf else f"{rho:.1e}"


def counts(dtype: str) -> str:
    """Count the findings in an arithmetic."""
    results = [(fault, finding(number, dtype)) for number, fault in enumerate(FAULTS)]
    seen = [(fault, result) for fault, result in results if result.where is not None]
    located = sum(result.where == fault.where for fault, result in seen)
    known = [(fault, result) for fault, result in seen if fault.diagnosis is not None]
    diagnosed = sum(result.diagnoses[:1] == (fault.diagnosis,) for fault, result in known)
    return (
        f"{dtype}: {len(seen)} of {len(results)} are detected, {located} of them first at the right tensor; of the "
        f"{len(known)} with a known bug {diagnosed} have the right diagnosis."
    )


if __name__ == "__main__":
    print(fault_table(), end="")
