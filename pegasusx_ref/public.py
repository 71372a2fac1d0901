"""The public names of the package, which `pegasusx_ref` imports when the first of them is used."""

from typing import TYPE_CHECKING

from pegasusx_ref.backend.registry import available_backends, get_backend
from pegasusx_ref.conversion import convert
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    ExtraError,
    InputError,
    InputTypeError,
    NumericsError,
    OutputError,
    PegasusXError,
)
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.model import PegasusXForConditionalGeneration, PegasusXModel
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.quantization_config import BitsAndBytesConfig
from pegasusx_ref.summarization import SummarizationPipeline, pipeline
from pegasusx_ref.tokenizer import PegasusTokenizer
from pegasusx_ref.tracing import listen, record
from pegasusx_ref.tracing.trace_points import TRACE_POINTS

if TYPE_CHECKING:
    from pegasusx_ref.verification import verify

__all__ = [
    "DEMO_CHECKPOINT",
    "TRACE_POINTS",
    "BackendError",
    "BitsAndBytesConfig",
    "CheckpointError",
    "ConfigError",
    "ExtraError",
    "GenerationConfig",
    "InputError",
    "InputTypeError",
    "NumericsError",
    "OutputError",
    "PegasusTokenizer",
    "PegasusXConfig",
    "PegasusXError",
    "PegasusXForConditionalGeneration",
    "PegasusXModel",
    "SummarizationPipeline",
    "available_backends",
    "convert",
    "get_backend",
    "listen",
    "pipeline",
    "record",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import `verify` when it is used: a summary needs none of verification."""
    if name != "verify":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pegasusx_ref.verification import verify

    return verify
