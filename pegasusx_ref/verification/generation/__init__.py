"""Verification of generated texts and of decoding with a cache: `verify_generation`, `verify_steps`. [spec 16]"""

from pegasusx_ref.verification.generation.decoding_steps import StepReport, verify_steps
from pegasusx_ref.verification.generation.report import Explanation, GenerationReport, TextDifference
from pegasusx_ref.verification.generation.step_mistakes import StepFinding
from pegasusx_ref.verification.generation.verifier import verify_generation

__all__ = [
    "Explanation",
    "GenerationReport",
    "StepFinding",
    "StepReport",
    "TextDifference",
    "verify_generation",
    "verify_steps",
]
