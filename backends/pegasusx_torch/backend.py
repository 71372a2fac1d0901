"""The model's operations on torch tensors."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pegasusx_ref.backend import Step
from pegasusx_ref.errors import BackendError
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_torch.attention import attend
from pegasusx_torch.global_local import Streams, global_local_attend
from pegasusx_torch.graphs import Replayed
from pegasusx_torch.masks import Lengths
from pegasusx_torch.precision import exact_float32, full_precision_product
from pegasusx_torch.products import Products
from pegasusx_torch.top_k import stable_top_k

HALVES = (torch.bfloat16, torch.float16)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
}
ROWS = 1024  # tokens of a piece on a CPU: so many that weights, which every piece reads again, cost little
POSITIONS_AT_A_TIME = 2048  # positions are float64: a few rows at a time keep them out of the memory's peak


class TorchBackend:
    """PyTorch on one device.

    In bfloat16 and float16 the matrices and what is multiplied with them are halves; the residual stream, the vectors
    (LayerNorm weights, biases), every sum and softmax, and the logits are float32. So nothing overflows that float32
    holds, and rounding does not pile up from layer to layer.

    Args:
        device: "cpu", "cuda:0", …, or a number: 0 is CUDA's first device, or the CPU where there is no CUDA; None and
            "auto" are the same as 0.
        dtype: one of `dtypes`.
        tf32: let CUDA round the operands of float32 products to TF32.

    Raises:
        BackendError: no such device here.
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
        self._operand: torch.dtype = getattr(torch, dtype)
        self._stream = torch.float32 if self._operand in HALVES else self._operand
        self._lengths = Lengths()
        self._products = Products()

    @classmethod
    def devices(cls) -> list[str]:
        """Name the devices that this backend finds, the one that it takes unasked first."""
        return [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu"]

    def compile(self, step: Step) -> Step:
        """Record a step as a CUDA graph; on a CPU there is nothing to gain."""
        return Replayed(step, self._device) if self.compiles else step

    # --- arrays

    def asarray(self, array: np.ndarray) -> Tensor:
        """Bring an array to the device: matrices in the compute dtype, vectors in float32 where that is a half."""
        if array.dtype.kind in "biu":
            return torch.from_numpy(np.ascontiguousarray(array, dtype=None if array.dtype == bool else np.int64)).to(
                self._device
            )
        with warnings.catch_warnings():
            # Weights that are mapped from a file cannot be written to, and never are.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            if array.dtype == ml_dtypes.bfloat16:
                tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                tensor = torch.from_numpy(np.asarray(array))
        return tensor.to(self._device, self._stream if array.ndim == 1 else self._operand)

    def to_numpy(self, array: Tensor) -> np.ndarray:
        """Bring a tensor back, halves as float32."""
        found: np.ndarray = (array.float() if array.dtype in HALVES else array).cpu().numpy()
        return found

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """Make an uninitialized tensor."""
        return torch.empty(shape, dtype=self._operand, device=self._device)

    def to_float32(self, array: Tensor | np.ndarray) -> Tensor:
        """Copy a tensor, or an array of the host."""
        return torch.as_tensor(array, device=self._device).to(torch.float32, copy=True)

    # --- operations

    def embed_tokens(self, ids_BT: Tensor, table_VD: Tensor, scale: float) -> Tensor:
        return F.embedding(ids_BT, table_VD).to(self._stream) * scale

    def contiguous(self, array: Tensor) -> Tensor:
        if self._device.type != "cpu" or array.is_contiguous():
            return array.contiguous()
        # Memory from NumPy, which asks the system for large pages: what every token reads again is read faster there.
        memory = torch.from_numpy(np.empty(array.numel() * array.itemsize, np.uint8))
        return memory.view(array.dtype).view(array.shape).copy_(array)

    def apply_in_chunks(self, function: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
        num_rows = x_BTD.numel() // x_BTD.shape[-1]
        if x_BTD.device.type != "cpu" or num_rows <= ROWS:
            return function(x_BTD)
        x_rows = x_BTD.reshape(1, num_rows, x_BTD.shape[-1])
        found_rows = torch.empty_like(x_rows)
        for some, found in zip(x_rows.split(ROWS, dim=1), found_rows.split(ROWS, dim=1), strict=True):
            found[:] = function(some)
        return found_rows.reshape(x_BTD.shape)

    def add_positions(self, x_BTD: Tensor, start: int) -> Tensor:
        _, T, D = x_BTD.shape
        placed_BTD = torch.empty_like(x_BTD, dtype=self._stream)
        half = D // 2
        steps = torch.arange(half, dtype=torch.float64, device=self._device)
        frequencies = torch.exp(-math.log(10000.0) / (half - 1) * steps)
        for first in range(0, T, POSITIONS_AT_A_TIME):
            rows = slice(first, min(first + POSITIONS_AT_A_TIME, T))
            places = torch.arange(start + rows.start, start + rows.stop, dtype=torch.float64, device=self._device)
            angles = places[:, None] * frequencies
            placed_BTD[:, rows] = x_BTD[:, rows] + torch.cat([angles.sin(), angles.cos()], dim=1)
        return placed_BTD

    def layer_norm(self, x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x_BTD.to(self._stream), weight_D.shape, weight_D, bias_D, eps).to(self._operand)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        with exact_float32(self.tf32):
            if self._operand is torch.float16 and x.device.type == "cpu":
                return full_precision_product(x, weight, bias, self._products).to(self._operand)
            return self._products.linear(x, weight, None if bias is None else bias.to(self._operand))

    def linear_full_precision(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self._operand not in HALVES:
            return self.linear(x, weight, bias)
        return full_precision_product(x, weight, bias, self._products)

    def activation(self, x: Tensor, name: str) -> Tensor:
        return ACTIVATIONS[name](x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x.to(self._stream) + y

    def attention(self, q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None = None) -> Tensor:
        with exact_float32(self.tf32):
            return attend(q_BHLF, k_BHXF, v_BHXF, visible)

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
        streams = Streams(q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF)
        lengths = self._lengths.of(key_mask_BT, q_BHTF)
        with exact_float32(self.tf32):
            return global_local_attend(streams, key_mask_BT, lengths, blocks)

    def log_softmax(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits, dim=-1, dtype=torch.float32 if logits.dtype in HALVES else None)

    def cross_entropy(self, logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
        return F.cross_entropy(logits_BLV.to(self._stream).flatten(0, 1), labels_BL.flatten())

    def stable_top_k(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return stable_top_k(scores, count)


def find_device(device: Any) -> torch.device:
    """Find the device that a user means.

    Raises:
        BackendError: there is none of that name or number here.
    """
    count = torch.cuda.device_count()
    if device in (None, "auto", 0):
        return torch.device(TorchBackend.devices()[0])
    try:
        found = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type == "cuda" and (found.index or 0) < count:
        return torch.device("cuda", found.index or 0)
    if found.type == "cpu":
        return torch.device("cpu")
    here = ", ".join(TorchBackend.devices())
    why = "" if count else ": torch finds no CUDA device"
    raise BackendError(f"backend 'torch' has no device {device!r}: here are {here}{why}")
