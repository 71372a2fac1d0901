"""The backend whose operations are the golden functions themselves. [spec 15]"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import numpy as np

from pegasusx_ref.backend.protocol import Step
from pegasusx_ref.backend.quantized import QuantizedMatrix, dense
from pegasusx_ref.errors import BackendError, shown
from pegasusx_ref.golden import attention, embedding, feed_forward, global_local, head, normalization, top_k


class GoldenBackend:
    """The golden functions themselves, in float64 or float32 on the CPU. [spec 15.2]"""

    name = "golden"
    version = np.__version__
    dtypes: tuple[str, ...] = ("float32", "float64")
    compiles = False

    def __init__(self, device: str | int | None, dtype: str) -> None:
        if device not in (None, "auto", "cpu", 0):
            raise BackendError(
                f"backend {self.name!r} runs on device 'cpu' only, not on {shown(device)}: choose a backend that does, "
                "torch or cupy"
            )
        self.device = "cpu"
        self.dtype = dtype

    @classmethod
    def devices(cls) -> list[str]:
        """List the CPU."""
        return ["cpu"]

    def compile(self, step: Step) -> Step:
        """Return the step itself: NumPy has nothing to capture."""
        return step

    def asarray(self, array: np.ndarray) -> np.ndarray:
        """Up-cast half precision exactly; an array already in the compute dtype is not copied."""
        if array.dtype.kind in "biu":
            return array
        return array.astype(self.dtype, copy=False)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Allocate an uninitialized array."""
        return np.empty(shape, dtype=self.dtype)

    def apply_in_chunks(self, function: Callable[[np.ndarray], np.ndarray], x_BTD: np.ndarray) -> np.ndarray:
        """Call the function once, with all tokens."""
        return function(x_BTD)

    def workspace(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def lay_out(self, k_BHXF: np.ndarray, v_BHXF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the arrays themselves."""
        return k_BHXF, v_BHXF

    def to_float32(self, array: np.ndarray) -> np.ndarray:
        """Copy an array to float32. Backends with half precision must override this, because their `asarray` rounds."""
        return self.asarray(array).astype(np.float32)

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Add an update to the residual stream."""
        total: np.ndarray = x + y
        return total

    def for_quantized_model(self) -> Self:
        """Return this backend."""
        return self

    def quantized(self, matrix: QuantizedMatrix) -> QuantizedMatrix:
        """Return the matrix itself."""
        return matrix

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        """Multiply with the matrix; a quantized one is dequantized first."""
        return feed_forward.linear(x, dense(weight, x.dtype), bias)

    linear_full_precision = linear

    def embed_tokens(self, ids_BT: Any, table_VD: Any, scale: float) -> Any:
        """Look up tokens; of a quantized table the rows that are needed are dequantized."""
        if isinstance(table_VD, QuantizedMatrix):
            return table_VD.take(ids_BT).astype(self.dtype, copy=False) * scale
        return embedding.embed_tokens(ids_BT, table_VD, scale)

    add_positions = staticmethod(embedding.add_positions)
    layer_norm = staticmethod(normalization.layer_norm)
    activation = staticmethod(feed_forward.activation)
    attention = staticmethod(attention.attention)

    def global_local_attention(
        self,
        q_BHTF: Any,
        k_BHTF: Any,
        v_BHTF: Any,
        global_q_BHGF: Any,
        global_k_BHGF: Any,
        global_v_BHGF: Any,
        key_mask_BT: Any,
        blocks: global_local.Blocks,
    ) -> tuple[Any, Any]:
        """Let each block attend by this backend's `attention`."""
        return global_local.global_local_attention(
            q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF, key_mask_BT, blocks, self.attention
        )

    log_softmax = staticmethod(head.log_softmax)
    cross_entropy = staticmethod(head.cross_entropy)
    stable_top_k = staticmethod(top_k.stable_top_k)
