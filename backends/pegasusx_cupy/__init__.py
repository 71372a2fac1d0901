"""The CuPy backend of pegasusx_ref: float64, float32, bfloat16 and float16 on CUDA."""

try:
    import cupy as _cupy  # noqa: F401
except ImportError as error:
    raise ImportError("CuPy is not installed: pip install 'pegasusx-ref[cupy]' (CUDA 12) or '[cupy13]'") from error

from pegasusx_cupy.backend import CupyBackend

__all__ = ["CupyBackend"]
