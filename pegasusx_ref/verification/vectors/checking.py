"""A foreign implementation's tensors held against a vector. [spec 16]"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.errors import InputError
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.arithmetic import ARITHMETICS
from pegasusx_ref.verification.checking import FAIL, WARN, Check, Failure, ratio
from pegasusx_ref.verification.dumps import INPUTS
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.layouts import HIDDEN
from pegasusx_ref.verification.operations import LOWEST
from pegasusx_ref.verification.valid_rows import ValidRows
from pegasusx_ref.verification.vectors.cases import blocks_of
from pegasusx_ref.verification.vectors.making import Vector
from pegasusx_ref.verification.vectors.sampling import Sample
from pegasusx_ref.verification.verifying import Report, verify


def check_vector(vector: Vector, tensors: Mapping[str, np.ndarray], arithmetic: str = "float32") -> Report:
    """Judge an implementation by what it made of a vector's weights and inputs.

    Whole tensors are verified operation by operation, as `verify` does. Where only the rows are given that a sampled
    vector keeps, there is nothing to compute from, and they are compared with what is stored, with the tolerance from
    end to end.

    Args:
        vector: from `read_vector`.
        tensors: the implementation's, by trace-point name; some may be missing.
        arithmetic: what it computes in, a key of `ARITHMETICS`.

    Raises:
        InputError: an arithmetic that is not known, a dump of other inputs, or no tensor with a trace point's name.
    """
    for name in INPUTS:
        if name in tensors and not np.array_equal(tensors[name], vector.inputs[name]):
            raise InputError(f"{name} of the dump are not those of the vector: run the implementation on its inputs")
    if is_of_sampled_rows(vector, tensors):
        return check_rows(vector, tensors, arithmetic)
    config = PegasusXConfig.from_dict(vector.manifest["config"])
    model = PegasusXForConditionalGeneration(config, vector.weights, get_backend("golden", dtype="float64"))
    return verify(model, tensors, {name: vector.inputs[name] for name in INPUTS}, arithmetic)


def is_of_sampled_rows(vector: Vector, tensors: Mapping[str, np.ndarray]) -> bool:
    """Tell whether a dump holds the rows that are kept, and not whole tensors."""
    sampled = [entry["name"] for entry in vector.manifest["tensors"] if "sampled" in entry]
    return any(name in tensors and tensors[name].shape == vector.trace[name].shape for name in sampled)


def check_rows(vector: Vector, tensors: Mapping[str, np.ndarray], arithmetic: str) -> Report:
    """Compare rows with those that are stored, by the rule of spec/vectors/README.md.

    Raises:
        InputError: an arithmetic that is not known.
    """
    if arithmetic not in ARITHMETICS:
        raise InputError(f"arithmetic={arithmetic!r} is not known: pass one of {', '.join(ARITHMETICS)}")
    checks: list[Check] = []
    failure: Failure | None = None
    for entry in vector.manifest["tensors"]:
        name = entry["name"]
        if name not in tensors:
            continue
        stored, valid = vector.trace[name], valid_rows(vector.inputs, entry)
        found = np.asarray(tensors[name], dtype=np.float64)
        checks.append(compared(entry, stored, found, valid, entry["tolerances"][arithmetic]["end_to_end"]))
        if checks[-1].verdict == "fail" and failure is None:
            failure = Failure(checks[-1], Estimate(np.random.default_rng(), stored, stored), found, valid, {})
    unknown = sorted(set(tensors) - {check.name for check in checks} - set(INPUTS))
    config = PegasusXConfig.from_dict(vector.manifest["config"])
    source, target = vector.inputs["attention_mask"], vector.inputs["decoder_attention_mask"]
    rows = ValidRows(source, target, blocks_of(config, source.shape[1]))
    # No picture of rows: those that are kept are too far apart to stand side by side.
    return Report(checks, failure, [], arithmetic, unknown, config, rows, {})


def valid_rows(inputs: Mapping[str, np.ndarray], entry: Mapping[str, Any]) -> np.ndarray:
    """Say which of the stored rows of a tensor count: booleans of its shape without the last axis.

    Args:
        inputs: of the vector, with `valid.source` and `valid.target`.
        entry: the tensor's, in the manifest.
    """
    shape = entry["shape"]
    mask = np.ones((shape[0], shape[-2]), dtype=bool) if entry["valid"] is None else inputs[entry["valid"]]
    if "slice" in entry:
        mask = mask[:, slice(*entry["slice"])]
    valid = np.broadcast_to(mask if len(shape) == 3 else mask[:, None], shape[:-1])
    return Sample(**entry["sampled"]).of(valid) if "sampled" in entry else valid


def compared(
    entry: Mapping[str, Any], stored: np.ndarray, found: np.ndarray, valid: np.ndarray, tolerance: tuple[float, float]
) -> Check:
    """Judge a tensor: each row that counts by sigma, each of its elements by the bound.

    Args:
        entry: the tensor's, in the manifest.
        stored: what is right.
        found: the implementation's.
        valid: which rows count.
        tolerance: sigma and bound.
    """
    sigma, bound = tolerance
    note = ""
    if found.shape != stored.shape:
        note = f"shape {found.shape} where {stored.shape} is expected"
    elif not np.isfinite(found[valid][stored[valid] != LOWEST]).all():
        note = "NaN or infinite"
    elif (found[valid][stored[valid] == LOWEST] > HIDDEN).any():
        note = "masked keys have scores like others"
    if note:
        inf = float("inf")
        return Check(entry["name"], entry["operation"], "fail", inf, inf, sigma, bound, (), inf, False, note)
    error = np.where(stored == LOWEST, 0.0, np.abs(found - np.where(stored == LOWEST, 0.0, stored)))
    error = np.where(valid[..., None], error, 0.0)
    rho = float(ratio(np.sqrt((error**2).mean(axis=-1)), np.array(sigma)).max())
    at = np.unravel_index(np.argmax(error), error.shape)
    verdict = "fail" if rho > FAIL or error.max() > bound else "warn" if rho > WARN else "pass"
    whole = ratio(error.max(), np.abs(stored[stored != LOWEST]).max(initial=0.0))
    place = tuple(int(i) for i in at)
    return Check(
        entry["name"], entry["operation"], verdict, rho, float(error.max()), sigma, bound, place, float(whole), False
    )
