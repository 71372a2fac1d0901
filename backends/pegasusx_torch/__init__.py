"""The PyTorch backend of pegasusx_ref: float64, float32, bfloat16 and float16 on CPU and CUDA."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("torch is not installed: pip install 'pegasusx-ref[torch]'") from error

from pegasusx_torch.backend import TorchBackend

__all__ = ["TorchBackend"]
