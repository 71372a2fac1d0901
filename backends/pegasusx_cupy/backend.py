"""The model's operations on CuPy arrays: golden functions by NumPy's dispatch protocols, and its own attention core."""

import math
from typing import Any

import cupy
import numpy as np
from cupyx.scipy.special import erf
from pegasusx_numpy.top_k import stable_top_k

from pegasusx_cupy.kernels import global_attention, local_attention, tile_for
from pegasusx_ref.backend import GoldenBackend, QuantizedMatrix, is_core_traced
from pegasusx_ref.errors import BackendError, shown
from pegasusx_ref.golden.global_local import Blocks


class CupyBackend(GoldenBackend):
    """CuPy on one CUDA device.

    CuPy launches kernels on a thread's current device. Copying to and from the device and allocating make it current:
    each call of a model begins with a copy.

    Args:
        device: "cuda:0", …, or a number; None and "auto" mean the first one.
        dtype: one of `dtypes`.

    Raises:
        BackendError: the device is not available.
    """

    name = "cupy"
    version = str(cupy.__version__)
    dtypes = ("float32", "float64")

    def __init__(self, device: str | int | None = None, dtype: str = "float32") -> None:
        available = self.devices()
        requested = available[0] if device in (None, "auto", "cuda", 0) else device
        requested = f"cuda:{requested}" if isinstance(requested, int) else requested
        if requested not in available:
            raise BackendError(f"backend 'cupy' has no device {shown(device)}: available here: {', '.join(available)}")
        self.device = str(requested)
        self.dtype = dtype
        self._device = cupy.cuda.Device(int(self.device.removeprefix("cuda:")))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device, self.dtype)

    @classmethod
    def devices(cls) -> list[str]:
        """List the CUDA devices.

        Raises:
            BackendError: CuPy finds no CUDA device.
        """
        if not cupy.cuda.is_available():
            raise BackendError("CuPy finds no CUDA device: it needs an NVIDIA GPU and its driver")
        return [f"cuda:{i}" for i in range(cupy.cuda.runtime.getDeviceCount())]

    def asarray(self, array: np.ndarray) -> Any:
        """Copy an array to the device; half precision is up-cast exactly."""
        self._device.use()
        return cupy.asarray(super().asarray(array))

    def quantized(self, matrix: QuantizedMatrix) -> QuantizedMatrix:
        """Copy codes and scales to the device."""
        self._device.use()
        return matrix.map(cupy.asarray)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Copy an array to the host."""
        self._device.use()
        on_host: np.ndarray = cupy.asnumpy(array)
        return on_host

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Allocate an uninitialized array."""
        self._device.use()
        return cupy.empty(shape, dtype=self.dtype)

    stable_top_k = staticmethod(stable_top_k)

    def activation(self, x: Any, name: str) -> Any:
        """Compute gelu with CuPy's erf: SciPy's does not dispatch."""
        if name == "gelu":
            return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))
        return super().activation(x, name)

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
        """Run the kernels; call the golden function if it is traced, or if heads are too wide for a tile."""
        keys_and_values = (k_BHTF, v_BHTF, global_k_BHGF, global_v_BHGF)
        if is_core_traced(blocks) or tile_for(q_BHTF.shape[3], q_BHTF.dtype.itemsize) is None:
            return super().global_local_attention(
                q_BHTF, k_BHTF, v_BHTF, global_q_BHGF, global_k_BHGF, global_v_BHGF, key_mask_BT, blocks
            )
        return (
            local_attention(q_BHTF, *keys_and_values, key_mask_BT, blocks),
            global_attention(global_q_BHGF, *keys_and_values, key_mask_BT),
        )
