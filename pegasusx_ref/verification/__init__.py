"""Means to check an implementation: `verify`, slow oracles of the attention core, and transformers' padded layouts."""

from pegasusx_ref.verification.candidates import Candidate, from_backend, from_callable, from_transformers
from pegasusx_ref.verification.checking import Check
from pegasusx_ref.verification.diagnosing import Diagnosis
from pegasusx_ref.verification.dumps import from_dump
from pegasusx_ref.verification.layouts import to_transformers_attentions
from pegasusx_ref.verification.oracles import dense_attention_oracle, token_attention_oracle, visible_keys
from pegasusx_ref.verification.verifying import Report, verify

__all__ = [
    "Candidate",
    "Check",
    "Diagnosis",
    "Report",
    "dense_attention_oracle",
    "from_backend",
    "from_callable",
    "from_dump",
    "from_transformers",
    "to_transformers_attentions",
    "token_attention_oracle",
    "verify",
    "visible_keys",
]
