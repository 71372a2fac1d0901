"""The model's operations on torch tensors."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import copy
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from pegasusx_numpy.workspace import workspace
from torch import Tensor
from torch.nn import functional as F

from pegasusx_ref.backend import QuantizedMatrix, Step
from pegasusx_ref.errors import BackendError, shown
from pegasusx_ref.golden import embedding
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_torch import quantized
from pegasusx_torch.attention import attention, reads_keys_by_feature
from pegasusx_torch.cuda_graph import CudaGraphStep
from pegasusx_torch.global_local import QKV, global_local_attention
from pegasusx_torch.linear import PackedWeights, linear
from pegasusx_torch.memory import WritableView, as_tensor, empty, in_large_pages, take
from pegasusx_torch.normalization import layer_norm
from pegasusx_torch.padding import SourceLengths
from pegasusx_torch.precision import allow_tf32, linear_full_precision
from pegasusx_torch.top_k import stable_top_k

HALF_PRECISION = (torch.bfloat16, torch.float16)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: F.relu(x) if (out := take(x.shape, x)) is None else torch.clamp_min(x, 0, out=out),
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
}
MAX_CHUNK_TOKENS = 1024  # on a CPU: large enough that reading the weights again for each chunk costs little
POSITION_CHUNK = 2048  # tokens: chunks of the float64 positions do not raise the peak of memory


@cache
def position_frequencies(width: int, device: torch.device) -> Tensor:
    """Copy the golden angular frequencies of the positions (D/2,) to a device, once: every decode step needs them.

    torch's exp may differ from NumPy's in the last bit, which the position multiplies.

    Args:
        width: D.
        device: of the result.
    """
    return torch.from_numpy(embedding.position_frequencies(width)).to(device)


class TorchBackend:
    """PyTorch on one device.

    In half precision, bfloat16 or float16, the operands of matrix products are rounded to it. The residual stream, the
    vectors (LayerNorm weights, biases), every sum and softmax, and the logits are float32. So nothing overflows that
    float32 can hold, and rounding errors do not accumulate from layer to layer.

    Args:
        device: "cpu", "cuda:0", …, or a number. 0 is the first CUDA device, or the CPU without CUDA; None and "auto"
            mean 0.
        dtype: one of `dtypes`.
        tf32: let CUDA round the operands of float32 products to TF32.

    Raises:
        BackendError: the device is not available.
    """

    name = "torch"
    version = str(torch.__version__)
    dtypes = ("float64", "float32", "bfloat16", "float16")

    def __init__(self, device: str | int | None = None, dtype: str = "float32", tf32: bool = False) -> None:
        self._device = find_device(device)
        self.device = str(self._device)
        self.compiles = self._device.type == "cuda"
        self.dtype = dtype
        self.tf32 = tf32
        self._compute_dtype: torch.dtype = getattr(torch, dtype)
        self._residual_dtype = torch.float32 if self._compute_dtype in HALF_PRECISION else self._compute_dtype
        self._source_lengths = SourceLengths()
        self._packed_weights = PackedWeights()
        self._has_quantized = False
        self._code_pairs = quantized.code_pairs(self._device)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device, self.dtype, self.tf32)  # without its caches

    @classmethod
    def devices(cls) -> list[str]:
        """List the available devices, the default first."""
        return [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu"]

    def compile(self, step: Step) -> Step:
        """Capture a step as a CUDA graph; on a CPU return it unchanged."""
        return CudaGraphStep(step, self._device) if self.compiles else step

    # --- arrays

    def asarray(self, array: np.ndarray) -> Tensor:
        """Copy an array to the device: matrices in the compute dtype, vectors in float32 instead of half precision."""
        if array.dtype.kind in "biu":
            integers = np.ascontiguousarray(array, dtype=None if array.dtype == bool else np.int64)
            return torch.from_numpy(integers).to(self._device)
        dtype = self._residual_dtype if array.ndim == 1 else self._compute_dtype
        return as_tensor(array).to(self._device, dtype)

    def for_quantized_model(self) -> Self:
        """Return a backend that multiplies vectors on a CPU by the NumPy backend's loops, whatever the matrix."""
        backend = copy(self)
        backend._has_quantized = True
        return backend

    def quantized(self, matrix: QuantizedMatrix) -> QuantizedMatrix:
        """Copy codes and scales to the device."""
        return matrix.map(lambda array: torch.from_numpy(np.asarray(WritableView(array))).to(self._device))

    def to_numpy(self, array: Tensor) -> np.ndarray:
        """Copy a tensor to the host, half precision as float32."""
        on_host: np.ndarray = (array.float() if array.dtype in HALF_PRECISION else array).cpu().numpy()
        return on_host

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Allocate an uninitialized tensor."""
        return torch.empty(shape, dtype=self._compute_dtype, device=self._device)

    def to_float32(self, array: Tensor | np.ndarray) -> Tensor:
        """Copy a tensor, or a NumPy array, to the device in float32."""
        return torch.as_tensor(array, device=self._device).to(torch.float32, copy=True)

    # --- operations

    def embed_tokens(self, ids_BT: Tensor, table_VD: Tensor | QuantizedMatrix, scale: float) -> Tensor:
        if isinstance(table_VD, QuantizedMatrix):
            return quantized.take(ids_BT, table_VD, self._code_pairs).to(self._residual_dtype) * scale
        return F.embedding(ids_BT, table_VD).to(self._residual_dtype) * scale

    def workspace(self) -> AbstractContextManager[None]:
        return workspace()

    def lay_out(self, k_BHXF: Tensor, v_BHXF: Tensor) -> tuple[Tensor, Tensor]:
        if reads_keys_by_feature(k_BHXF):
            return in_large_pages(k_BHXF.mT).mT, in_large_pages(v_BHXF)
        return in_large_pages(k_BHXF), in_large_pages(v_BHXF)

    def apply_in_chunks(self, function: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
        num_rows = x_BTD.numel() // x_BTD.shape[-1]
        if x_BTD.device.type != "cpu" or num_rows <= MAX_CHUNK_TOKENS:
            return function(x_BTD)
        x_rows = x_BTD.reshape(1, num_rows, x_BTD.shape[-1])
        y_rows = empty(x_rows.shape, x_rows)
        for x, y in zip(x_rows.split(MAX_CHUNK_TOKENS, dim=1), y_rows.split(MAX_CHUNK_TOKENS, dim=1), strict=True):
            y[:] = function(x)
        return y_rows.reshape(x_BTD.shape)

    def add_positions(self, x_BTD: Tensor, start: int) -> Tensor:
        _, T, D = x_BTD.shape
        y_BTD = torch.empty_like(x_BTD, dtype=self._residual_dtype)
        frequencies = position_frequencies(D, self._device)
        for first in range(0, T, POSITION_CHUNK):
            chunk = slice(first, min(first + POSITION_CHUNK, T))
            positions = torch.arange(chunk.start, chunk.stop, dtype=torch.float64, device=self._device) + start
            angles = positions[:, None] * frequencies
            y_BTD[:, chunk] = x_BTD[:, chunk] + torch.cat([angles.sin(), angles.cos()], dim=1)
        return y_BTD

    def layer_norm(self, x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        return layer_norm(x_BTD.to(self._residual_dtype), weight_D, bias_D, eps, self._compute_dtype)

    def linear(self, x: Tensor, weight: Tensor | QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, QuantizedMatrix) or (self._has_quantized and quantized.takes_vector(x, weight)):
            return quantized.linear(x, weight, bias, self._code_pairs, self.linear).to(self._compute_dtype)
        with allow_tf32(self.tf32, self._device):
            if self._compute_dtype is torch.float16 and x.device.type == "cpu":
                return linear_full_precision(x, weight, bias, self._packed_weights).to(self._compute_dtype)
            bias = None if bias is None else bias.to(self._compute_dtype)
            return linear(x, weight, bias, self._packed_weights)

    def linear_full_precision(self, x: Tensor, weight: Tensor | QuantizedMatrix, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, QuantizedMatrix):
            return quantized.linear(x, weight, bias, self._code_pairs, self.linear_full_precision)
        if self._compute_dtype not in HALF_PRECISION:
            return self.linear(x, weight, bias)
        return linear_full_precision(x, weight, bias, self._packed_weights)

    def activation(self, x: Tensor, name: str) -> Tensor:
        return ACTIVATIONS[name](x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.to(self._residual_dtype)
        return torch.add(x, y, out=take(x.shape, x))

    def attention(self, q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None = None) -> Tensor:
        with allow_tf32(self.tf32, self._device):
            return attention(q_BHLF, k_BHXF, v_BHXF, visible)

    def global_local_attention(
        self,
        q_BHTF: Tensor,
        k_BHTF: Tensor,
        v_BHTF: Tensor,
        global_q_BHGF: Tensor,
        global_k_BHGF: Tensor,
        global_v_BHGF: Tensor,
        key_mask_BT: Tensor | None,
        blocks: Blocks,
    ) -> tuple[Tensor, Tensor]:
        qkv = QKV(q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF)
        lengths = self._source_lengths.get(key_mask_BT, q_BHTF)
        with allow_tf32(self.tf32, self._device):
            return global_local_attention(qkv, key_mask_BT, lengths, blocks)

    def log_softmax(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits, dim=-1, dtype=torch.float32 if logits.dtype in HALF_PRECISION else None)

    def cross_entropy(self, logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
        return F.cross_entropy(logits_BLV.to(self._residual_dtype).flatten(0, 1), labels_BL.flatten())

    def stable_top_k(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return stable_top_k(scores, count)


def find_device(device: Any) -> torch.device:
    """Return the torch device for a user's `device`.

    Raises:
        BackendError: no device of that name or number is available.
    """
    available = TorchBackend.devices()
    if device in (None, "auto", 0):
        return torch.device(available[0])
    try:
        requested = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    except (RuntimeError, TypeError):
        requested = torch.device("meta")
    if requested.type == "cuda" and (requested.index or 0) < len(available) - 1:
        return torch.device("cuda", requested.index or 0)
    if requested.type == "cpu":
        return torch.device("cpu")
    reason = "" if len(available) > 1 else " (torch finds no CUDA device)"
    raise BackendError(f"backend 'torch' has no device {shown(device)}: available here: {', '.join(available)}{reason}")
