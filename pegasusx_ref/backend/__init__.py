"""The operations that the model is written over, the golden backend, and the registry of backends. [spec 15]"""

from pegasusx_ref.backend.golden import GoldenBackend
from pegasusx_ref.backend.protocol import Array, Backend, Step, is_core_traced
from pegasusx_ref.backend.quantized import QuantizedMatrix
from pegasusx_ref.backend.registry import BackendInfo, available_backends, backend_names, get_backend

__all__ = [
    "Array",
    "Backend",
    "BackendInfo",
    "GoldenBackend",
    "QuantizedMatrix",
    "Step",
    "available_backends",
    "backend_names",
    "get_backend",
    "is_core_traced",
]
