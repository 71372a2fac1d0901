"""Verification of other implementations: `verify`, candidates, slow reference attention, transformers' layouts."""

from importlib import import_module
from typing import TYPE_CHECKING

from pegasusx_ref.verification.candidates.dumps import from_dump
from pegasusx_ref.verification.candidates.sources import Candidate, from_backend, from_callable, from_transformers
from pegasusx_ref.verification.candidates.transformers_layout import to_transformers_attentions
from pegasusx_ref.verification.naive_attention import dense_attention, token_loop_attention, visible_keys
from pegasusx_ref.verification.verdicts import Check, Diagnosis, Finding, Report
from pegasusx_ref.verification.verifier import verify

if TYPE_CHECKING:
    from pegasusx_ref.verification.candidates.flax_module import flax_variables, from_flax
    from pegasusx_ref.verification.candidates.onnx_model import from_onnx
    from pegasusx_ref.verification.candidates.steps import from_steps
    from pegasusx_ref.verification.candidates.torch_module import from_torch_module
    from pegasusx_ref.verification.generation import verify_generation, verify_steps

IMPORTED_LATER = {  # at the first use of the name: they take as long as the rest of the package
    "flax_variables": "candidates.flax_module",
    "from_flax": "candidates.flax_module",
    "from_onnx": "candidates.onnx_model",
    "from_steps": "candidates.steps",
    "from_torch_module": "candidates.torch_module",
    "verify_generation": "generation",
    "verify_steps": "generation",
}

__all__ = [
    "Candidate",
    "Check",
    "Diagnosis",
    "Finding",
    "Report",
    "dense_attention",
    "flax_variables",
    "from_backend",
    "from_callable",
    "from_dump",
    "from_flax",
    "from_onnx",
    "from_steps",
    "from_torch_module",
    "from_transformers",
    "to_transformers_attentions",
    "token_loop_attention",
    "verify",
    "verify_generation",
    "verify_steps",
    "visible_keys",
]


def __getattr__(name: str) -> object:
    """Import a name of `IMPORTED_LATER`."""
    if name not in IMPORTED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{IMPORTED_LATER[name]}"), name)
