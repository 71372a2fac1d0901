"""The operations that the model is written over, the NumPy backend, and how others are found. [spec 15]"""

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

import numpy as np

from pegasusx_ref import attention, embedding, feed_forward, global_local, head, normalization
from pegasusx_ref.errors import BackendError
from pegasusx_ref.global_local import Slices

Array = Any  # an array of the backend: NumPy's, CuPy's, torch's; shapes are in the names
ENTRY_POINT_GROUP = "pegasusx_ref.backends"


class Backend(Protocol):
    """What the model needs of an array library: each operation means what the golden function of its name says.

    Arrays stay on the device from one operation to the next; only ids go in, and ids or results come out. Besides the
    operations the model uses what NumPy, CuPy and torch arrays share: `shape`, `dtype`, slicing, `reshape`, `swapaxes`.
    A backend is constructed with the keywords `device`, as users give it to `get_backend`, and `dtype`, one of the
    `dtypes` that its class declares. [spec 15.1]
    """

    @property
    def name(self) -> str: ...
    @property
    def dtypes(self) -> Sequence[str]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...

    def asarray(self, array: np.ndarray) -> Array:
        """Bring an array to the device: floating-point ones in the compute dtype, integers and booleans as they are."""

    def to_numpy(self, array: Array) -> np.ndarray:
        """Bring an array back."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Make room for an array in the compute dtype; what it holds is arbitrary."""

    def embed_tokens(self, ids_BT: Array, table_VD: Array, scale: float) -> Array: ...
    def add_positions(self, x_BTD: Array, start: int) -> Array: ...
    def layer_norm(self, x_BTD: Array, weight_D: Array, bias_D: Array, eps: float) -> Array: ...
    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array: ...
    def activation(self, x: Array, name: str) -> Array: ...
    def add(self, x: Array, y: Array) -> Array: ...
    def attention(self, q_BHLF: Array, k_BHXF: Array, v_BHXF: Array, visible: Array | None = None) -> Array: ...
    def global_local_attention(
        self,
        q_BHTF: Array,
        k_BHTF: Array,
        v_BHTF: Array,
        global_q_BHGF: Array,
        global_k_BHGF: Array,
        global_v_BHGF: Array,
        key_mask_BT: Array | None,
        slices: Slices,
    ) -> tuple[Array, Array]: ...
    def log_softmax(self, logits: Array) -> Array: ...
    def cross_entropy(self, logits_BLV: Array, labels_BL: Array) -> Array: ...


class NumpyBackend:
    """The golden functions themselves, in float64 or float32 on the CPU. [spec 15.2]"""

    name = "numpy"
    dtypes = ("float32", "float64")

    def __init__(self, device: str | int | None, dtype: str) -> None:
        if device not in (None, "auto", "cpu", 0):
            raise BackendError(f"backend {self.name!r} runs on device 'cpu' only, not on {device!r}")
        self.device = "cpu"
        self.dtype = dtype

    def asarray(self, array: np.ndarray) -> np.ndarray:
        """Up-cast half precision exactly; an array already in the compute dtype is not copied."""
        if array.dtype.kind in "biu":
            return array
        return array.astype(self.dtype, copy=False)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """Return the array itself."""
        return array

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Make an uninitialized array."""
        return np.empty(shape, dtype=self.dtype)

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Add an update to the residual stream."""
        total: np.ndarray = x + y
        return total

    embed_tokens = staticmethod(embedding.embed_tokens)
    add_positions = staticmethod(embedding.add_positions)
    layer_norm = staticmethod(normalization.layer_norm)
    linear = staticmethod(feed_forward.linear)
    activation = staticmethod(feed_forward.activation)
    attention = staticmethod(attention.attention)
    global_local_attention = staticmethod(global_local.global_local_attention)
    log_softmax = staticmethod(head.log_softmax)
    cross_entropy = staticmethod(head.cross_entropy)


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def available_backends() -> list[str]:
    """Name the backends that are installed, the golden one first. [spec 15.3]"""
    return ["numpy", *sorted(_installed().keys() - {"numpy"})]


def get_backend(name: str = "numpy", device: str | int | None = None, dtype: Any = "float32") -> Backend:
    """Make a backend ready to compute. [spec 15.4]

    Args:
        name: one of `available_backends()`; nothing is ever chosen in its place.
        device: "cpu", "cuda:0", or a number among the backend's devices; None, "auto" and 0 are its first one.
        dtype: what it computes in, as the backend declares: "float64", "float32", …, or NumPy's or torch's own.

    Raises:
        BackendError: an unknown backend, a device that it does not run on, or a dtype that it does not compute in.
    """
    if name == "numpy":
        backend_class: Any = NumpyBackend
    elif name in (installed := _installed()):
        try:
            backend_class = installed[name].load()
        except (ImportError, AttributeError) as error:
            raise BackendError(
                f"backend {name!r} is announced as {installed[name].value!r}, but that cannot be loaded: {error}"
            ) from error
    else:
        raise BackendError(
            f"backend {name!r} is not installed: available here: {', '.join(available_backends())} "
            f"(others are found by the entry-point group {ENTRY_POINT_GROUP!r})"
        )
    dtype = dtype_name(dtype)
    if dtype not in backend_class.dtypes:
        raise BackendError(
            f"backend {name!r} does not compute in {dtype!r}: it declares {', '.join(backend_class.dtypes)} "
            "(weights stored in another dtype are converted on load)"
        )
    backend: Backend = backend_class(device=device, dtype=dtype)
    return backend


def dtype_name(dtype: Any) -> str:
    """Spell a dtype as backends do.

    Args:
        dtype: a name, a NumPy dtype or scalar type, or a torch dtype.

    Raises:
        BackendError: it is none of these.
    """
    if isinstance(dtype, str) or str(dtype).startswith("torch."):
        return str(dtype).removeprefix("torch.")
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        raise BackendError(f"dtype {dtype!r} is none: pass a name such as 'float32'") from None
