"""The check of an implementation's tensors against a vector. [spec 16]"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.errors import InputError
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.checker import HUGE, NOT_MASKED, ratio
from pegasusx_ref.verification.dumps import INPUTS
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.operations import HIDDEN, LOWEST
from pegasusx_ref.verification.valid_rows import ValidRows
from pegasusx_ref.verification.vectors.build import Vector
from pegasusx_ref.verification.vectors.kept_rows import Selection
from pegasusx_ref.verification.vectors.vector_cases import all_blocks
from pegasusx_ref.verification.verdicts import FAIL, WARN, Check, Failure, Report, not_comparable
from pegasusx_ref.verification.verifier import get_arithmetic, verify


def check_vector(vector: Vector, tensors: Mapping[str, np.ndarray], arithmetic: str = "float32") -> Report:
    """Check the tensors that an implementation computes from a vector's weights and inputs.

    Whole tensors are verified operation by operation, as in `verify`. If the dump holds only the rows that a vector
    keeps, operations cannot be recomputed: the rows are compared with the stored ones by the end-to-end tolerance.

    Args:
        vector: from `read_vector`.
        tensors: the implementation's, by trace-point name; some may be missing.
        arithmetic: what it computes in, a key of `ARITHMETICS`.

    Raises:
        InputError: an unknown arithmetic, a dump of other inputs, or no tensor with a trace point's name.
    """
    for name in INPUTS:
        if name in tensors and not np.array_equal(tensors[name], vector.inputs[name]):
            raise InputError(f"{name} of the dump differ from the vector's: run the implementation on its inputs")
    config = PegasusXConfig.from_dict(vector.manifest["config"])
    if has_kept_rows_only(vector, tensors):
        return check_rows(vector, config, tensors, arithmetic)
    model = PegasusXForConditionalGeneration(config, vector.weights, get_backend("golden", dtype="float64"))
    return verify(model, tensors, {name: vector.inputs[name] for name in INPUTS}, arithmetic)


def has_kept_rows_only(vector: Vector, tensors: Mapping[str, np.ndarray]) -> bool:
    """Return whether a dump holds the rows that the vector keeps instead of whole tensors."""
    sampled = [entry["name"] for entry in vector.manifest["tensors"] if "sampled" in entry]
    return any(name in tensors and tensors[name].shape == vector.trace[name].shape for name in sampled)


def check_rows(vector: Vector, config: PegasusXConfig, tensors: Mapping[str, np.ndarray], arithmetic: str) -> Report:
    """Compare rows with the stored ones, by the rule of spec/vectors/README.md.

    Raises:
        InputError: an unknown arithmetic.
    """
    get_arithmetic(arithmetic)
    checks: list[Check] = []
    failure: Failure | None = None
    for entry in vector.manifest["tensors"]:
        if (name := entry["name"]) not in tensors:
            continue
        stored, valid = vector.trace[name], valid_rows(vector.inputs, entry)
        candidate = np.asarray(tensors[name], dtype=np.float64)
        checks.append(compare(entry, stored, candidate, valid, entry["tolerances"][arithmetic]["end_to_end"]))
        if checks[-1].verdict == "fail" and failure is None:
            failure = Failure(checks[-1], Estimate(np.random.default_rng(), stored, stored), candidate, valid, {})
    unknown = sorted(set(tensors) - {check.name for check in checks} - set(INPUTS))
    source, target = vector.inputs["attention_mask"], vector.inputs["decoder_attention_mask"]
    valid_tokens = ValidRows(source, target, all_blocks(config, source.shape[1]))
    # No row errors and so no heatmap: the kept rows are far apart.
    return Report(checks, failure, [], arithmetic, unknown, config, valid_tokens, {})


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
        note = "NaN or infinite"
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
    return Check(name, operation, verdict, rho, largest, sigma, bound, at, end_to_end, False)
