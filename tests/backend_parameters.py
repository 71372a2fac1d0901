"""The backends that tests run on, each in every dtype that it declares.

The CuPy backend runs without a GPU: on strict arrays instead of CuPy's, with its kernels compiled for the CPU.
"""

from importlib.util import find_spec
from typing import Any

import emulated
import fake_cupy
import numpy as np
import pytest

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, get_backend
from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.model.weights import random_weights

NO_TORCH = "torch is not installed: pip install -e '.[test]' -c tests/constraints.txt"
DTYPES = {
    "numpy": ("float64", "float32"),
    "torch": ("float64", "float32", "bfloat16", "float16"),
    "cupy": ("float64", "float32", "bfloat16", "float16"),
}
MARKS: dict[str, Any] = {
    "numpy": (),
    "torch": pytest.mark.skipif(find_spec("torch") is None, reason=NO_TORCH),
    "cupy": pytest.mark.skipif(emulated.COMPILER is None, reason=emulated.NO_COMPILER),
}
EVERYTHING = [
    pytest.param(name, dtype, id=f"{name}-{dtype}", marks=MARKS[name]) for name in DTYPES for dtype in DTYPES[name]
]
# For tests that do not depend on precision: each backend once.
IN_FLOAT64 = [pytest.param(name, id=name, marks=MARKS[name]) for name in DTYPES]


def backend_on_cpu(name: str, dtype: str) -> Any:
    """Create a backend that runs on the CPU, even CuPy's."""
    if name != "cupy":
        return get_backend(name, "cpu", dtype)
    with fake_cupy.installed():
        return get_backend(name, dtype=dtype)


def random_model(
    config: PegasusXConfig, seed: int, backend: str = "golden", dtype: str = "float64"
) -> PegasusXForConditionalGeneration:
    """Create a model on a backend with random weights, rounded to the dtype: the same numbers on every backend."""
    weights = {name: rounded(w, dtype) for name, w in random_weights(config, seed, head=True).items()}
    return PegasusXForConditionalGeneration(config, weights, backend_on_cpu(backend, dtype))


def reference(config: PegasusXConfig, seed: int, dtype: str) -> PegasusXForConditionalGeneration:
    """Create the golden model in float64 with the weights that `random_model` has in a dtype."""
    weights = {name: rounded(w, dtype) for name, w in random_weights(config, seed, head=True).items()}
    return PegasusXForConditionalGeneration(config, weights, get_backend("golden", dtype="float64"))


def quantized_weights(config: PegasusXConfig, seed: int, kind: str) -> dict[str, Any]:
    """Return random weights whose matrices are quantized, but for the global tokens'."""
    return {
        name: QuantizedMatrix.quantize(tensor, kind) if tensor.ndim == 2 and "embed_global" not in name else tensor
        for name, tensor in random_weights(config, seed).items()
    }


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Round to a dtype and convert back to float64, so that backends and golden functions get the same numbers."""
    return array.astype(numpy_dtype(dtype)).astype(np.float64)
