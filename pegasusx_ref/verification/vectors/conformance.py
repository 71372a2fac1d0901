"""The check of an implementation's tensors against a vector. [spec 16]"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tracing.trace_points import is_gradient
from pegasusx_ref.verification.candidates.inputs import INPUTS
from pegasusx_ref.verification.checking.arithmetics import Arithmetic, get_arithmetic
from pegasusx_ref.verification.checking.candidate_tensors import CandidateTensors
from pegasusx_ref.verification.checking.checker import NOT_FINITE
from pegasusx_ref.verification.checking.comparison import HUGE, ratio
from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.checking.masked_scores import NOT_MASKED
from pegasusx_ref.verification.checking.operations import HIDDEN, LOWEST
from pegasusx_ref.verification.checking.valid_rows import ValidRows
from pegasusx_ref.verification.coverage import coverage
from pegasusx_ref.verification.findings import FindingCollector
from pegasusx_ref.verification.known_differences import Known, KnownDifference, known_differences
from pegasusx_ref.verification.vectors.build import Vector
from pegasusx_ref.verification.vectors.kept_rows import Selection
from pegasusx_ref.verification.vectors.tolerances import VECTOR_ARITHMETICS
from pegasusx_ref.verification.vectors.vector_cases import all_blocks
from pegasusx_ref.verification.verdicts import FAIL, WARN, Check, Failure, Report, not_comparable
from pegasusx_ref.verification.verifier import verify


def check_vector(
    vector: Vector, tensors: Mapping[str, np.ndarray], arithmetic: str | Arithmetic = "float32", known: Known = ()
) -> Report:
    """Check the tensors that an implementation computes from a vector's weights and inputs.

    Whole tensors are verified operation by operation, as in `verify`. If the dump holds only the rows that a vector
    keeps, operations cannot be recomputed: the rows are compared with the stored ones by the end-to-end tolerance.
    Gradients are verified too, if the vector has some, and the implementation shows some of its loss of these labels.

    Args:
        vector: from `read_vector`.
        tensors: the implementation's, by trace-point name; some may be missing.
        arithmetic: what it computes in, as in `verify`; for single rows, one of `VECTOR_ARITHMETICS`.
        known: differences that do not fail, as in `verify`.

    Raises:
        InputError: an unknown arithmetic, a dump of other inputs, an unreadable known difference, or no tensor with a
            trace point's name.
    """
    inputs = {name: vector.inputs[name] for name in INPUTS}
    has_gradients = bool(vector.gradients) and any(map(is_gradient, tensors))
    if has_gradients:
        inputs["labels"] = vector.gradients["labels"]
    for name in inputs:
        if name in tensors and not np.array_equal(tensors[name], inputs[name]):
            raise InputError(f"{name} of the dump differ from the vector's: run the implementation on its inputs")
    config = PegasusXConfig.from_dict(vector.manifest["config"])
    if has_kept_rows_only(vector, tensors):
        return check_rows(vector, config, tensors, get_arithmetic(arithmetic), known_differences(known))
    model = PegasusXForConditionalGeneration(config, vector.weights, get_backend("golden", dtype="float64"))
    report = verify(model, tensors, inputs, arithmetic, known, gradients=has_gradients)
    report.notes = []  # other vectors have other inputs
    return report


def has_kept_rows_only(vector: Vector, tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether a dump holds the rows that the vector keeps instead of whole tensors."""
    sampled = [entry["name"] for entry in vector.manifest["tensors"] if "sampled" in entry]
    return any(name in tensors and np.shape(tensors[name]) == vector.trace[name].shape for name in sampled)


def check_rows(
    vector: Vector,
    config: PegasusXConfig,
    tensors: Mapping[str, np.ndarray],
    arithmetic: Arithmetic,
    known: Sequence[KnownDifference],
) -> Report:
    """Compare rows with the stored ones, by the rule of spec/vectors/README.md.

    Raises:
        InputError: an unknown arithmetic, or one that the vector has no tolerances for.
    """
    if arithmetic.name not in VECTOR_ARITHMETICS:
        raise InputError(
            f"arithmetic={shown(arithmetic.name)}: the vector's single rows have tolerances for "
            f"{', '.join(VECTOR_ARITHMETICS)}; other arithmetics need whole tensors"
        )
    names, checks = [entry["name"] for entry in vector.manifest["tensors"]], list[Check]()
    covered: dict[KnownDifference, list[Check]] = {difference: [] for difference in known}
    collector, dump = (
        FindingCollector(lambda *_: []),
        CandidateTensors(tensors, max(x.size for x in vector.trace.values())),
    )
    for entry in vector.manifest["tensors"]:
        if (name := entry["name"]) not in tensors:
            continue
        stored, valid = vector.trace[name], valid_rows(vector.inputs, entry)
        candidate = dump[name]
        check = compare(entry, stored, candidate, valid, entry["tolerances"][arithmetic.name]["end_to_end"])
        if check.verdict == "fail":
            if (difference := next((d for d in known if d.covers(name, check)), None)) is not None:
                check = check._replace(verdict="known")
                covered[difference].append(check)
            else:
                # Errors are end to end here: every failure may follow from the first one.
                cause = collector.findings[0].first.name if collector.findings else ""
                collector.add(Failure(check, Estimate(stored, stored), candidate, valid, {}, cause))
        checks.append(check)
    compared = [check.name for check in checks]
    source, target = vector.inputs["attention_mask"], vector.inputs["decoder_attention_mask"]
    valid_tokens = ValidRows(source, target, all_blocks(config, source.shape[1]))
    missing, names_there = [name for name in names if name not in tensors], set(tensors) - set(INPUTS)
    # No row errors and so no heatmap: the kept rows are far apart.
    return Report(
        checks,
        collector.findings,
        collector.failure,
        arithmetic.name,
        coverage(compared, missing, names_there),
        config,
        valid_tokens,
        {},
        covered,
    )


def valid_rows(inputs: Mapping[str, np.ndarray], entry: Mapping[str, Any]) -> np.ndarray:
    """Return which stored rows of a tensor count: booleans of its shape without the last axis.

    Args:
        inputs: of the vector, with `valid.source` and `valid.target`.
        entry: the tensor's entry in the manifest.
    """
    shape = entry["shape"]
    mask = np.ones((shape[0], shape[-2]), dtype=bool) if entry["valid"] is None else inputs[entry["valid"]]
    if "slice" in entry:
        mask = mask[:, slice(*entry["slice"])]
    valid = np.broadcast_to(mask if len(shape) == 3 else mask[:, None], shape[:-1])
    return Selection(**entry["sampled"]).take(valid) if "sampled" in entry else valid


def compare(
    entry: Mapping[str, Any],
    stored: np.ndarray,
    candidate: np.ndarray,
    valid: np.ndarray,
    tolerance: tuple[float, float],
) -> Check:
    """Compare each row that counts by sigma, and each of its elements by the bound.

    Args:
        entry: the tensor's entry in the manifest.
        stored: the right values.
        candidate: the implementation's values.
        valid: which rows count.
        tolerance: sigma and bound.
    """
    name, operation, (sigma, bound), note = entry["name"], entry["operation"], tolerance, ""
    is_masked = stored == LOWEST
    if candidate.shape != stored.shape:
        note = f"shape {candidate.shape} where {stored.shape} is expected"
    elif not np.isfinite(candidate[valid][~is_masked[valid]]).all():
        note = NOT_FINITE
    elif (candidate[valid][is_masked[valid]] > HIDDEN).any():
        note = NOT_MASKED
    if note:
        return not_comparable(name, operation, False, note, sigma, bound)
    difference = np.minimum(np.abs(candidate - np.where(is_masked, 0.0, stored)), HUGE)
    error = np.where(valid[..., None] & ~is_masked, difference, 0.0)
    rho, largest = float(ratio(np.sqrt((error**2).mean(axis=-1)), np.array(sigma)).max()), float(error.max())
    at = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))
    verdict = "fail" if rho > FAIL or largest > bound else "warn" if rho > WARN else "pass"
    end_to_end = float(ratio(error.max(), np.abs(stored[~is_masked]).max(initial=0.0)))
    return Check(name, operation, verdict, rho, largest, sigma, bound, at, end_to_end, False, "", largest)
