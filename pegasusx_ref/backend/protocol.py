"""The operations that the model is written over. [spec 15]"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from pegasusx_ref.golden.global_local import Blocks
from pegasusx_ref.tracing import wanted

Array = Any  # an array of the backend: NumPy's, CuPy's, torch's; shapes are in the names
Step = Callable[..., Array]  # arrays in, an array out, of the same shapes at every call


class Backend(Protocol):
    """What the model needs of an array library: each operation means what the golden function of its name says.

    Arrays stay on the device from one operation to the next; only ids go in, and ids or results come out. Besides the
    operations the model uses what NumPy, CuPy and torch arrays share: `shape`, `dtype`, slicing, `reshape`, `swapaxes`,
    and searches arithmetic, `argmax`, `clip`, reading and writing at arrays of indices.
    A backend is constructed with the keywords `device`, as users give it to `get_backend`, `dtype`, one of the `dtypes`
    that its class declares, and options of its own. [spec 15.1]
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str:
        """Version of the array library; declared by the class, like `name` and `dtypes`."""

    @property
    def dtypes(self) -> Sequence[str]:
        """What it can compute in."""

    @classmethod
    def devices(cls) -> Sequence[str]:
        """Name the devices that it finds here, the first one first; a `BackendError` says why there is none."""

    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def compiles(self) -> bool:
        """Whether `compile` gains anything here; then decoding keeps its caches at fixed sizes."""

    def compile(self, step: Step) -> Step:
        """Make a step that is taken again and again cheaper, or return it as it is.

        CUDA records what a step does at its first call and repeats it on the same memory. So whatever changes from call
        to call must come as an argument, not as a number in Python, and what the step keeps it must write in place. The
        result may be written over by the next call.
        """

    def asarray(self, array: np.ndarray) -> Array:
        """Bring an array to the device: floating-point ones in the compute dtype, integers and booleans as they are."""

    def to_numpy(self, array: Array) -> np.ndarray:
        """Bring an array back."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Make room for an array in the compute dtype; what it holds is arbitrary."""

    def apply_in_chunks(self, function: Callable[[Array], Array], x_BTD: Array) -> Array:
        """Call a function that treats every token on its own, `function(x_BTD)`, all at once or some tokens at a time.

        In pieces what lies between input and result stays in the cache, and never needs room for all tokens at once.
        """

    def contiguous(self, array: Array) -> Array:
        """Lay out in the order of its axes what is read again and again."""

    def to_float32(self, array: Array) -> Array:
        """Copy an array, of the device or of the host, to the device in float32, whatever the compute dtype.

        It is what searches compare. They write into the copy, and into what `log_softmax` makes of it.
        """

    def embed_tokens(self, ids_BT: Array, table_VD: Array, scale: float) -> Array: ...
    def add_positions(self, x_BTD: Array, start: int) -> Array: ...
    def layer_norm(self, x_BTD: Array, weight_D: Array, bias_D: Array, eps: float) -> Array: ...
    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array: ...
    def linear_full_precision(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Compute `linear` for the residual stream or the logits: in half precision the result is not rounded to it."""

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
        """Compute in the dtype of the logits, halves in float32; the result is a new array."""

    def cross_entropy(self, logits_BLV: Array, labels_BL: Array) -> Array: ...
    def stable_top_k(self, scores: Array, count: int) -> tuple[Array, Array]: ...


def is_core_traced(blocks: Blocks) -> bool:
    """Tell whether someone listens inside `global_local_attention`, so that it must not be fused.

    Args:
        blocks: the layer's blocks, each of which has trace points of its own.
    """
    places = [*(f"local.{n}" for n in range(len(blocks))), "global"]
    return any(wanted(f"{place}.{tensor}") for place in places for tensor in ("scores", "probs", "context"))
