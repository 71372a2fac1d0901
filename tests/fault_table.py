"""Run the suite of faults and print the page of results: python tests/fault_table.py > spec/faults.md."""

import copy
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from backend_parameters import reference
from faults import FAULTS, SUITE, Fault, exact_positions
from faults.injection import torch
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


class Shown(Mapping[str, np.ndarray]):
    """The tensors with `is_shown`, each read on access."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        if not is_shown(name):
            raise KeyError(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return filter(is_shown, self._tensors)

    def __len__(self) -> int:
        return len(list(iter(self)))


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


def is_shown(name: str) -> bool:
    """Return whether most ports show a tensor: hidden states and projections, but nothing else inside attention."""
    return not re.search(r"(scores|probs|context|residual|activation|embed_tokens|embed_global)$", name)


def first_shown(where: str) -> str:
    """Return the first tensor with `is_shown` that a tensor changes."""
    if is_shown(where):
        return where
    place, own = re.fullmatch(r"(.*)\.(\w+)", where).groups()  # type: ignore[union-attr]
    if own in ("scores", "probs", "context"):
        stream = re.sub(r"local\.\d+$", "tokens", re.sub(r"global$", "globals", place))
        return f"{stream}.out_proj"
    after = {"activation": "fc2", "embed_tokens": "embeddings", "embed_global": "layers.0.globals.input"}
    after |= {"encoder_attn_residual": "final_layer_norm"}
    after |= {"self_attn_residual": "final_layer_norm" if place.startswith("encoder") else "encoder_attn_layer_norm"}
    return f"{place}.{after[own]}"


def verify_fault(fault: Fault, dtype: str, shown: str = "all") -> Finding:
    """Verify a candidate with a fault, which shows "all" tensors or "states": those with `is_shown`."""
    golden, hf_model = right_models(tuple(fault.config.items()), dtype)
    with deterministic_torch():
        if fault.model is not None:
            hf_model = copy.deepcopy(hf_model)
            fault.model(hf_model)
        tensors: Any = from_transformers(hf_model)(INPUTS)
        if fault.dump is not None:
            tensors = ChainMap({fault.where: fault.dump(tensors[fault.where], tensors)}, tensors)
        if shown == "states":
            tensors = Shown(tensors)
        report = verify(golden, tensors, INPUTS, dtype)
    first, diagnoses = report.first_failure, tuple(diagnosis.mistake for diagnosis in report.diagnoses)
    return Finding(None, 0.0, ()) if first is None else Finding(first.name, first.rho, diagnoses)


@cache
def finding(number: int, dtype: str, shown: str = "all") -> Finding:
    """Verify with a fault of the suite, once."""
    return verify_fault(FAULTS[number], dtype, shown)


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
([16.11](16-trace-points.md#1611-verdicts)); below 6, only single elements are wrong. The other columns are the first
likely bug ([16.13](16-trace-points.md#1613-diagnosis)), or – where no known bug explains the error; a name in brackets
is not the expected one. In the last column, only hidden states and projections are shown, as most people have them: no
scores, probabilities, contexts, residual sums or activations.

{counts}
"""
HEADER = (
    "| fault | first wrong tensor | ρ float32 | float32 | ρ bfloat16 | bfloat16 | float32, few tensors |",
    "|---|---|---|---|---|---|---|",
)
COLUMNS = {3: "float32", 5: "bfloat16", 6: "float32, hidden states and projections only"}
NOT_VISIBLE = "not visible: smaller than rounding"
NOT_SHOWN = "not shown"
NO_NAME, THE_SAME, ELSEWHERE = "–", "the same", "; flagged at "


def fault_table() -> str:
    """Format the page."""
    rows = [row(number) for number in range(len(FAULTS))]
    return page(rows)


def page(rows: list[str]) -> str:
    """Format the page from its rows."""
    numbers, sections = iter(range(len(FAULTS))), []
    for title, faults in SUITE.items():
        sections.append("\n".join([f"## {title}", "", *HEADER, *(rows[next(numbers)] for _ in faults), ""]))
    stored = sum(fault.dump is not None for fault in FAULTS)
    cells = [cells_of(text) for text in rows]
    head = PAGE.format(
        total=len(FAULTS),
        live=len(FAULTS) - stored,
        stored=stored,
        command=COMMAND,
        counts="\n".join(f"- {title}: {counts([row[column] for row in cells])}" for column, title in COLUMNS.items()),
    )
    return "\n".join([head, *sections])


def cells_of(text: str) -> list[str]:
    """Return the cells of a row; "the same" is replaced by what it stands for."""
    cells = text.removeprefix("| ").removesuffix(" |").split(" | ")
    return [cells[3] if cell == THE_SAME else cell for cell in cells]


def row(number: int) -> str:
    """Format the findings for one fault."""
    fault = FAULTS[number]
    cells = [fault.name, f"`{fault.where}`"]
    for dtype in ("float32", "bfloat16"):
        seen = finding(number, dtype)
        cells += ["" if seen.where is None else size(seen.rho), cell(fault, seen, fault.where)]
    if fault.dump is not None and not is_shown(fault.where):
        cells.append(NOT_SHOWN)
    else:
        cells.append(cell(fault, finding(number, "float32", "states"), first_shown(fault.where)))
    cells[5:] = [THE_SAME if text == cells[3] != NO_NAME else text for text in cells[5:]]
    return f"| {' | '.join(cells)} |"


def cell(fault: Fault, seen: Finding, where: str) -> str:
    """Format a likely bug, and the tensor if another one must be flagged."""
    if seen.where is None:
        return NOT_VISIBLE
    name = seen.diagnoses[0] if seen.diagnoses else NO_NAME
    name = name if name in (NO_NAME, fault.diagnosis) else f"({name})"
    return name if seen.where == where else f"{name}{ELSEWHERE}`{seen.where}`"


def size(rho: float) -> str:
    """Format rho; a value that is no larger than rounding differs between machines."""
    return "< 6" if rho <= 6 else "∞" if rho == np.inf else f"{rho:.1e}"


def counts(cells: list[str]) -> str:
    """Count the findings in a column."""
    shown = [text for text in cells if text != NOT_SHOWN]
    seen = [text for text in shown if text != NOT_VISIBLE]
    right = sum(ELSEWHERE not in text for text in seen)
    names = [text.split(ELSEWHERE)[0] for text in seen]
    wrong, unnamed = sum(name.startswith("(") for name in names), names.count(NO_NAME)
    return (
        f"{len(seen)} of {len(shown)} are detected, {right} of them first at the right tensor; "
        f"{len(seen) - wrong - unnamed} are named as expected, {wrong} otherwise. The others are smaller than rounding."
    )


if __name__ == "__main__":
    print(fault_table(), end="")
