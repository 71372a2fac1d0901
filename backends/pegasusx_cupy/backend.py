"""The model's operations on CuPy arrays: golden functions by NumPy's dispatch protocols, own kernels where they pay."""

import math
from typing import Any

import cupy
import numpy as np
from cupyx.scipy.special import erf

from pegasusx_cupy import kernels
from pegasusx_cupy.compilation import HALF_PRECISION, MIN_CAPABILITY, sum_dtype, tile_for
from pegasusx_cupy.cuda_graph import CudaGraphStep
from pegasusx_cupy.products import load_cublas, product
from pegasusx_cupy.top_k import stable_top_k
from pegasusx_ref.backend import GoldenBackend, QuantizedMatrix, Step, is_core_traced
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.errors import BackendError, shown
from pegasusx_ref.golden.attention import mask_scores, softmax
from pegasusx_ref.golden.embedding import position_frequencies
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing import tap, wanted


def without_half_precision(array: Any) -> Any:
    """Return an array in its own dtype, half precision as float32."""
    return array.astype(np.float32) if str(array.dtype) in HALF_PRECISION else array


class CupyBackend(GoldenBackend):
    """CuPy on one CUDA device.

    In half precision, bfloat16 or float16, the operands of matrix products are rounded to it, as in the torch backend.
    The residual stream, the vectors (LayerNorm weights, biases), softmax, sums and logits are float32, except that
    cuBLAS may add the partial sums of a long product in half precision. It needs an Ampere GPU or a newer one.

    CuPy launches kernels on a thread's current device. Copying to and from the device and allocating make it current:
    each call of a model begins with a copy.

    Args:
        device: "cuda:0", …, or a number; None and "auto" mean the first one.
        dtype: one of `dtypes`.
        tf32: let the operands of float32 products be rounded to TF32, by cuBLAS and in the attention core.

    Raises:
        BackendError: the device is not available, or cuBLAS cannot be loaded.
    """

    name = "cupy"
    version = str(cupy.__version__)
    dtypes = ("float32", "float64", "bfloat16", "float16")
    compiles = True

    def __init__(self, device: str | int | None = None, dtype: str = "float32", tf32: bool = False) -> None:
        available = self.devices()
        requested = available[0] if device in (None, "auto", "cuda", 0) else device
        requested = f"cuda:{requested}" if isinstance(requested, int) else requested
        if requested not in available:
            raise BackendError(f"backend 'cupy' has no device {shown(device)}: available here: {', '.join(available)}")
        load_cublas()
        self.device = str(requested)
        self.dtype = dtype
        self.tf32 = tf32
        self._device = cupy.cuda.Device(int(self.device.removeprefix("cuda:")))
        capability = int(self._device.compute_capability)
        if dtype in HALF_PRECISION and capability < MIN_CAPABILITY:
            raise BackendError(
                f"backend 'cupy' computes in {dtype!r} from compute capability 8.0 on, and {self.device} has "
                f"{capability / 10}: use dtype='float32', or the torch backend"
            )
        in_tf32 = tf32 and dtype == "float32" and capability >= MIN_CAPABILITY
        self._core_arithmetics = ("tf32", dtype) if in_tf32 else (dtype,)  # the first that has a tile is used
        self._compute_dtype = numpy_dtype(dtype)
        self._residual_dtype = numpy_dtype(sum_dtype(dtype))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device, self.dtype, self.tf32)

    @classmethod
    def devices(cls) -> list[str]:
        """List the CUDA devices.

        Raises:
            BackendError: CuPy finds no CUDA device.
        """
        if not cupy.cuda.is_available():
            raise BackendError("CuPy finds no CUDA device: it needs an NVIDIA GPU and its driver")
        return [f"cuda:{i}" for i in range(cupy.cuda.runtime.getDeviceCount())]

    def compile(self, step: Step) -> Step:
        """Return a step that is captured as a CUDA graph."""
        return CudaGraphStep(step, self._device)

    # --- arrays

    def asarray(self, array: np.ndarray) -> Any:
        """Copy an array to the device: matrices in the compute dtype, vectors in float32 instead of half precision."""
        self._device.use()
        if array.dtype.kind in "biu":
            return cupy.asarray(array)
        return cupy.asarray(array.astype(self._residual_dtype if array.ndim == 1 else self._compute_dtype, copy=False))

    def quantized(self, matrix: QuantizedMatrix) -> QuantizedMatrix:
        """Copy codes and scales to the device."""
        self._device.use()
        return matrix.map(cupy.asarray)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Copy an array to the host, half precision as float32."""
        self._device.use()
        on_host: np.ndarray = without_half_precision(cupy.asnumpy(array))
        return on_host

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Allocate an uninitialized array."""
        self._device.use()
        return cupy.empty(shape, dtype=self._compute_dtype)

    def to_float32(self, array: Any) -> Any:
        """Copy an array of the device or of the host to float32."""
        self._device.use()
        return cupy.array(array, dtype=np.float32)

    # --- operations

    def stable_top_k(self, scores: Any, count: int) -> tuple[Any, Any]:
        """Sort chunks of columns; bfloat16, which CuPy does not sort, as float32."""
        best, columns = stable_top_k(without_half_precision(scores), count)
        return best, columns

    def embed_tokens(self, ids_BT: Any, table_VD: Any, scale: float) -> Any:
        """Look up tokens, and scale them in the dtype of the residual stream."""
        rows = table_VD.take(ids_BT) if isinstance(table_VD, QuantizedMatrix) else table_VD[ids_BT]
        return rows.astype(self._residual_dtype, copy=False) * scale

    def add_positions(self, x_BTD: Any, start: int) -> Any:
        """Compute the positions on the device: copying them takes longer."""
        _, T, D = x_BTD.shape
        positions = cupy.asarray(np.arange(start, start + T, dtype=np.float64))
        angles = positions[:, None] * cupy.asarray(position_frequencies(D))
        return (x_BTD + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)).astype(self._residual_dtype)

    def layer_norm(self, x_BTD: Any, weight_D: Any, bias_D: Any, eps: float) -> Any:
        """Run a kernel, which reads the residual stream once and writes the compute dtype."""
        x_BTD = x_BTD.astype(self._residual_dtype, copy=False)
        return kernels.layer_norm(x_BTD, weight_D, bias_D, eps, self.dtype)

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """Multiply by cuBLAS, or few rows by a kernel; a quantized matrix is dequantized first."""
        return self._linear(x, weight, bias, self._compute_dtype)

    def linear_full_precision(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """Return the float32 sums of half precision."""
        return self._linear(x, weight, bias, self._residual_dtype)

    def _linear(self, x: Any, weight: Any, bias: Any, dtype: Any) -> Any:
        matrix = kernels.dequantized(weight, self._compute_dtype) if isinstance(weight, QuantizedMatrix) else weight
        rows = x.astype(self._compute_dtype, copy=False).reshape(-1, x.shape[-1])
        if rows.shape[0] <= kernels.FEW:
            y = kernels.few_rows(rows, matrix, bias, dtype)
        else:
            y = product(rows, matrix, dtype, transposed=True, bias=bias, tf32=self.tf32)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def add(self, x: Any, y: Any) -> Any:
        """Add an update to the residual stream."""
        return x.astype(self._residual_dtype, copy=False) + y

    def activation(self, x: Any, name: str) -> Any:
        """Compute gelu with CuPy's erf, because SciPy's does not dispatch, and half precision in float32."""
        if name == "relu":
            return kernels.relu(x)
        if x.dtype != self._residual_dtype:
            return self.activation(x.astype(self._residual_dtype), name).astype(x.dtype)
        if name == "gelu":
            return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))
        return super().activation(x, name)

    def attention(self, q_BHLF: Any, k_BHXF: Any, v_BHXF: Any, visible: Any = None) -> Any:
        """Multiply by cuBLAS, with a kernel for the softmax; few queries are one kernel, unless scores are traced."""
        q_BHLF, k_BHXF, v_BHXF = self._in_compute_dtype(q_BHLF, k_BHXF, v_BHXF)
        is_traced = wanted("scores") or wanted("probs")
        if q_BHLF.shape[2] <= kernels.FEW and not is_traced:
            return tap("context", kernels.few_queries(q_BHLF, k_BHXF, v_BHXF, visible))
        scale = q_BHLF.shape[3] ** -0.5
        scores = product(q_BHLF, k_BHXF, self._residual_dtype, transposed=True, scale=scale, tf32=self.tf32)
        if is_traced:
            scores = tap("scores", scores if visible is None else mask_scores(scores, visible))
            probs = tap("probs", softmax(scores))
            v_BHXF = v_BHXF.astype(self._residual_dtype, copy=False)  # a listener sees the numbers that are multiplied
        else:
            probs = kernels.softmax(scores, visible, self.dtype)
        context_BHLF = product(probs, v_BHXF, v_BHXF.dtype, tf32=self.tf32)
        return tap("context", context_BHLF.astype(self._compute_dtype, copy=False))

    def global_local_attention(
        self,
        q_BHTF: Any,
        k_BHTF: Any,
        v_BHTF: Any,
        global_q_BHGF: Any,
        global_k_BHGF: Any,
        global_v_BHGF: Any,
        key_mask_BT: Any,
        blocks: Blocks,
    ) -> tuple[Any, Any]:
        """Run the kernels; attend block by block if it is traced, or if heads are too wide for a tile."""
        q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF = self._in_compute_dtype(
            q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF
        )
        arithmetic = next((each for each in self._core_arithmetics if tile_for(q_BHTF.shape[3], each)), None)
        if not is_core_traced(blocks) and arithmetic is not None:
            keys_and_values = (k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF)
            return (
                kernels.local_attention(q_BHTF, *keys_and_values, key_mask_BT, blocks, arithmetic),
                kernels.global_attention(global_q_BHGF, *keys_and_values, key_mask_BT, arithmetic),
            )
        return super().global_local_attention(
            q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF, key_mask_BT, blocks
        )

    def _in_compute_dtype(self, *arrays: Any) -> list[Any]:
        """Return arrays in the compute dtype, which a listener may have replaced by others."""
        return [array.astype(self._compute_dtype, copy=False) for array in arrays]

    def log_softmax(self, logits: Any) -> Any:
        """Compute half precision in float32."""
        return super().log_softmax(without_half_precision(logits))

    def cross_entropy(self, logits_BLV: Any, labels_BL: Any, label_smoothing: float = 0.0) -> Any:
        """Compute half precision in float32."""
        return super().cross_entropy(without_half_precision(logits_BLV), labels_BL, label_smoothing)
