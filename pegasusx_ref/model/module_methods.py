"""The methods of a torch module that programs for transformers call: a model stays what it was loaded as."""

from typing import Any, Self

from pegasusx_ref.backend import Backend
from pegasusx_ref.backend.registry import dtype_name, get_backend
from pegasusx_ref.errors import BackendError, InputError, shown

DTYPES = ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


class ModuleMethods:
    """Methods that return the model itself, or an error with the remedy."""

    ops: Backend

    def to(self, *places: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False) -> Self:
        """Return the model if it is on the device and computes in the dtype.

        Args:
            places: a device, a dtype, or both, as torch takes them.
            device: "cpu", "cuda:0", a number, or a torch device.
            dtype: a name, a NumPy dtype or a torch dtype.
            non_blocking: accepted for torch's sake.

        Raises:
            BackendError: the model is elsewhere, or computes in another dtype: it has to be loaded again.
        """
        for place in places:
            if _is_dtype(place):
                dtype = place
            else:
                device = place
        found = (self.ops.device, self.ops.dtype)
        device = found[0] if device is None else device
        if type(device).__name__ == "device":  # of torch
            device = str(device)
        wanted = get_backend(self.ops.name, device, found[1] if dtype is None else dtype)
        if (wanted.device, wanted.dtype) != found:
            raise BackendError(
                f"the model is on {found[0]} in {found[1]} and cannot be converted: load it again with "
                f"from_pretrained(…, device={wanted.device!r}, dtype={wanted.dtype!r})"
            )
        return self

    def cpu(self) -> Self:
        """Return the model if it is on the CPU; see `to`."""
        return self.to("cpu")

    def cuda(self, device: Any = "cuda:0") -> Self:
        """Return the model if it is on the CUDA device; see `to`."""
        return self.to(f"cuda:{shown(device)}" if isinstance(device, int) else device)

    def half(self) -> Self:
        """Return the model if it computes in float16; see `to`."""
        return self.to(dtype="float16")

    def bfloat16(self) -> Self:
        """Return the model if it computes in bfloat16; see `to`."""
        return self.to(dtype="bfloat16")

    def float(self) -> Self:
        """Return the model if it computes in float32; see `to`."""
        return self.to(dtype="float32")

    def double(self) -> Self:
        """Return the model if it computes in float64; see `to`."""
        return self.to(dtype="float64")

    def eval(self) -> Self:
        """Return the model: it always computes what torch's evaluation mode computes."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Return the model if `mode` is False.

        Raises:
            InputError: training mode, which has dropout.
        """
        if mode is not False:
            raise InputError(f"train({shown(mode)}): this model does not train: train its to_torch_module()")
        return self


def _is_dtype(value: Any) -> bool:
    try:
        return not isinstance(value, int) and dtype_name(value) in DTYPES
    except BackendError:
        return False
