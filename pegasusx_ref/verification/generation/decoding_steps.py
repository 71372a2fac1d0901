"""Verification of decoding with a cache, step by step. [spec 16]"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general
from pegasusx_ref.verification.candidates.steps import StepSource, as_steps, from_steps
from pegasusx_ref.verification.checking.arithmetics import Arithmetic, get_arithmetic
from pegasusx_ref.verification.generation.step_mistakes import Decoding, StepFinding
from pegasusx_ref.verification.known_differences import Known
from pegasusx_ref.verification.verdicts import Report
from pegasusx_ref.verification.verifier import tensors_on_host, verify

NEAR = 64.0  # roundoffs, relative to the largest number, that a row may differ from one with a fault


class StepReport(NamedTuple):
    """The results of `verify_steps`.

    Attributes:
        report: of `verify`, for the tensors of all steps.
        findings: the first wrong step of each wrong tensor of the decoder and of each wrong cache.
    """

    report: Report
    findings: list[StepFinding]

    @property
    def passed(self) -> bool:
        """Whether no tensor and no cache is wrong."""
        return self.report.passed and not self.findings


def verify_steps(
    reference: PegasusXForConditionalGeneration,
    source: StepSource,
    inputs: Mapping[str, Any],
    arithmetic: str | Arithmetic = "float32",
    known: Known = (),
) -> StepReport:
    """Check a candidate that decodes with a cache, step by step, with names for faults of the cache. [spec 16.26]

    Args:
        reference: the model, with the candidate's weights.
        source: the tensors of the steps, as in `from_steps`; also the caches after each step,
            ``decoder.layers.{i}.self_attn.cache.k`` and ``….cache.v``, (B, H, t + 1, F) or (B, t + 1, D);
            those of ``encoder_attn`` alike, (B, H, T, F) or (B, T, D).
        inputs: see `verify`; decoder_input_ids holds the tokens of all steps.
        arithmetic: see `verify`.
        known: see `verify`.

    Raises:
        InputError: see `verify` and `from_steps`.
    """
    arithmetic = get_arithmetic(arithmetic)
    ids = inputs.get("decoder_input_ids") if isinstance(inputs, Mapping) else None
    steps = as_steps(source, None if ids is None else np.shape(ids)[1] if np.ndim(ids) == 2 else None)
    tensors = from_steps(steps)
    report = verify(reference, tensors, inputs, arithmetic, known)
    mask = inputs.get("attention_mask")
    mask_BT = None if mask is None else np.asarray(to_numpy(mask), dtype=bool)
    heads = reference.config.decoder_attention_heads
    tensors = {name: tensor for name, tensor in tensors.items() if name in report.rows}  # of the right shape
    decoding = Decoding(steps, tensors, tensors_on_host(reference), heads, mask_BT, NEAR * arithmetic.result)
    findings = list(decoding.cache_findings())
    wrong = {check.name for check in report.table if check.verdict == "fail" and check.name.startswith("decoder.")}
    for name in tensors:
        if name in wrong and "L" in TRACE_POINTS[general(name)]:
            by_row = report.rows[name].is_wrong
            wrong_steps = np.flatnonzero(by_row.reshape(-1, by_row.shape[-1]).any(axis=0)).tolist()
            if wrong_steps and by_row.shape[-1] == len(steps):
                found, later = (decoding.mistakes(name, step) for step in (wrong_steps[0], wrong_steps[-1]))
                # A short row may have several explanations, of which those of a longer row are left.
                words = next((words for words in found if words in later), next(iter(found), ""))
                findings.append(StepFinding(wrong_steps[0], name, words))
    return StepReport(report, findings)
