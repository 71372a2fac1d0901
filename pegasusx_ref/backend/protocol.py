"""The operations that the model is written over. [spec 15]"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from pegasusx_ref.backend.quantized import QuantizedMatrix
from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing import wanted

Array = Any  # an array of the backend: NumPy's, CuPy's, torch's; shapes are in the names
Step = Callable[..., Array]  # arrays in, an array out, of the same shapes at every call


class Backend(Protocol):
    """What the model needs from an array library; each operation computes the golden function of its name.

    Arrays stay on the device between operations; only ids and masks are copied to it, and ids or results back. Besides
    the operations, the model uses what NumPy, CuPy and torch arrays share: `shape`, `dtype`, slicing, `reshape` and
    `swapaxes`. Searches also use arithmetic, `argmax`, `clip`, and indexing with arrays of integers.
    Threads may share a backend: whatever it caches must not change the result of another thread's call.
    A backend is constructed with the keywords `device`, as users pass it to `get_backend`, `dtype`, one of the `dtypes`
    that its class declares, and its own options. [spec 15.1]
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str:
        """The version of the array library; declared by the class, like `name` and `dtypes`."""

    @property
    def dtypes(self) -> Sequence[str]:
        """The dtypes that it can compute in."""

    @classmethod
    def devices(cls) -> Sequence[str]:
        """List the available devices, the default first; raise a `BackendError` with the reason if there is none."""

    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def compiles(self) -> bool:
        """Whether `compile` makes steps faster on this device; decoding then uses a static cache by default."""

    def compile(self, step: Step) -> Step:
        """Make a step that is called repeatedly faster, or return it unchanged.

        CUDA captures the operations of the first call and repeats them on the same memory. So whatever changes between
        calls must be an argument, not a Python number, and the step must update its state in place. The next call may
        overwrite the result.
        """

    def asarray(self, array: np.ndarray) -> Array:
        """Copy an array to the device: floating point in the compute dtype, integers and booleans unchanged."""

    def for_quantized_model(self) -> "Backend":
        """Return the backend for a model that has quantized matrices: it may multiply the others differently."""

    def quantized(self, matrix: QuantizedMatrix) -> QuantizedMatrix:
        """Copy a quantized matrix to the device; `linear` and `embed_tokens` take it in place of an array."""

    def to_numpy(self, array: Array) -> np.ndarray:
        """Copy an array to the host."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Allocate an uninitialized array in the compute dtype."""

    def apply_in_chunks(self, function: Callable[[Array], Array], x_BTD: Array) -> Array:
        """Call a position-wise function, `function(x_BTD)`, on all tokens at once or on chunks of tokens.

        Intermediate results of a chunk stay in the cache, and never need memory for all tokens at once.
        """

    def workspace(self) -> AbstractContextManager[None]:
        """Return a context in which the memory of large arrays may be used again, as soon as nothing refers to them."""

    def lay_out(self, k_BHXF: Array, v_BHXF: Array) -> tuple[Array, Array]:
        """Copy keys and values that every decode step reads, if `attention` reads them faster in another layout."""

    def to_float32(self, array: Array) -> Array:
        """Copy an array of the device or of the host to the device in float32, whatever the compute dtype.

        Searches compare scores in float32. They write into this copy, and into the result of `log_softmax`.
        """

    def embed_tokens(self, ids_BT: Array, table_VD: Array, scale: float) -> Array: ...
    def add_positions(self, x_BTD: Array, start: int) -> Array: ...
    def layer_norm(self, x_BTD: Array, weight_D: Array, bias_D: Array, eps: float) -> Array: ...
    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array: ...
    def linear_full_precision(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Compute `linear` for the residual stream or the logits; its result is not rounded to half precision."""

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
        blocks: Blocks,
    ) -> tuple[Array, Array]: ...
    def log_softmax(self, logits: Array) -> Array:
        """Compute in the dtype of the logits, half precision in float32; the result is a new array."""

    def cross_entropy(self, logits_BLV: Array, labels_BL: Array) -> Array: ...
    def stable_top_k(self, scores: Array, count: int) -> tuple[Array, Array]: ...


def is_core_traced(blocks: Blocks) -> bool:
    """Return whether a listener records a tensor inside `global_local_attention`, so that it must not be fused.

    Args:
        blocks: the layer's blocks, each of which has its own trace points.
    """
    places = [*(f"local.{n}" for n in range(len(blocks))), "global"]
    return any(wanted(f"{place}.{tensor}") for place in places for tensor in ("scores", "probs", "context"))
