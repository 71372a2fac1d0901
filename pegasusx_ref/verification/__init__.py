"""Verification of other implementations: `verify`, candidates, slow reference attention, transformers' layouts."""

from pegasusx_ref.verification.candidates import Candidate, from_backend, from_callable, from_transformers
from pegasusx_ref.verification.dumps import from_dump
from pegasusx_ref.verification.naive_attention import dense_attention, token_loop_attention, visible_keys
from pegasusx_ref.verification.transformers_layout import to_transformers_attentions
from pegasusx_ref.verification.verdicts import Check, Diagnosis, Report
from pegasusx_ref.verification.verifier import verify

__all__ = [
    "Candidate",
    "Check",
    "Diagnosis",
    "Report",
    "dense_attention",
    "from_backend",
    "from_callable",
    "from_dump",
    "from_transformers",
    "to_transformers_attentions",
    "token_loop_attention",
    "verify",
    "visible_keys",
]
