"""The golden reference of PEGASUS-X: every layer as a page of plain NumPy, equal to transformers to 1e-10."""

from pegasusx_ref.backend.registry import available_backends, get_backend
from pegasusx_ref.demo import DEMO_CHECKPOINT
from pegasusx_ref.errors import BackendError, CheckpointError, ConfigError, ExtraError, InputError, PegasusXError
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.model import PegasusXForConditionalGeneration, PegasusXModel
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.summarization import SummarizationPipeline, pipeline
from pegasusx_ref.tokenizer import PegasusTokenizer
from pegasusx_ref.tracing import listen, record
from pegasusx_ref.tracing.trace_points import TRACE_POINTS
from pegasusx_ref.verification import verify

__version__ = "0.1.0"

__all__ = [
    "DEMO_CHECKPOINT",
    "TRACE_POINTS",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "ExtraError",
    "GenerationConfig",
    "InputError",
    "PegasusTokenizer",
    "PegasusXConfig",
    "PegasusXError",
    "PegasusXForConditionalGeneration",
    "PegasusXModel",
    "SummarizationPipeline",
    "available_backends",
    "get_backend",
    "listen",
    "pipeline",
    "record",
    "verify",
]
