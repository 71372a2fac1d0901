"""Which NumPy calls reach CuPy's arrays, and whether the installed CuPy takes them; no GPU is needed.

`python tests/cupy_contract.py` runs the model on strict arrays, makes a call of each kind on arrays of CuPy, and writes
data/cupy_contract.txt, the list of calls that strict arrays take. A call that CuPy refuses is printed and left out.
A call that only a test reaches is added to the runs below.
"""

import sys
from typing import Any

import cupy
import numpy as np
from backend_parameters import DTYPES, backend_on_cpu
from cupy._core._scalar import get_typename
from cupy.cuda.memory import MemoryPointer, UnownedMemory
from strict_arrays import CHECKED, TABLE, Call, StrictArray, recording

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, record
from pegasusx_ref.backend.quantized import QuantizedMatrix
from pegasusx_ref.golden.feed_forward import ACTIVATIONS
from pegasusx_ref.model.generation_run import CACHES
from pegasusx_ref.model.weights import random_weights

# --- What the model calls

TEXTS: dict[str, Any] = {
    "input_ids": [[7, 8, 9, 10, 11, 12, 13] * 3, [9, 8, 7] * 7],
    "attention_mask": [[1] * 21, [0] * 2 + [1] * 19],
}
TARGETS: dict[str, Any] = {"decoder_input_ids": [[0, 7], [0, 8]], "decoder_attention_mask": [[1, 1], [1, 0]]}
PROCESSORS: dict[str, Any] = {
    "max_new_tokens": 6,
    "min_new_tokens": 3,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 2,
    "bad_words_ids": [[3], [4, 5]],
    "suppress_tokens": [7, 8],
    "begin_suppress_tokens": [9],
    "exponential_decay_length_penalty": [1, 1.5],
    "renormalize_logits": True,
    "forced_bos_token_id": 4,
    "forced_eos_token_id": 1,
    "prefix_allowed_tokens_fn": lambda source, text: range(200),
}
SEARCHES: list[dict[str, Any]] = [{}, {"num_beams": 3}, {"do_sample": True, "seed": 0}]


def recorded_calls() -> dict[str, Call]:
    """Run everything that the model computes on a device; return a call of each kind by its line in the table."""
    with recording() as calls:
        for dtype in DTYPES["cupy"]:
            run_models(dtype)
            run_searches(dtype)
            run_quantized(dtype)
            run_operations(dtype)
    return calls


def run_models(dtype: str) -> None:
    for activation in ACTIVATIONS:
        model(dtype, activation_function=activation)(**TEXTS, **TARGETS, labels=[[7, 1], [8, -100]])
    with record():  # traced, attention runs the golden functions in place of the kernels
        model(dtype)(**TEXTS, **TARGETS)


def run_searches(dtype: str) -> None:
    for cache in CACHES:
        for how in SEARCHES:
            model(dtype).generate(**TEXTS, cache_implementation=cache, **how, **PROCESSORS)
        # A source that is done leaves the batch.
        model(dtype).generate(
            **TEXTS,
            cache_implementation=cache,
            max_new_tokens=3,
            stopping_criteria=[lambda ids, scores: np.arange(len(ids)) < len(ids) // 2],
        )


def run_quantized(dtype: str) -> None:
    for kind in ("nf4", "int8"):
        for heads in (2, 8):  # rows of 16 numbers begin inside of blocks, rows of 64 with them
            model(dtype, kind, d_model=8 * heads, encoder_attention_heads=heads)(**TEXTS, **TARGETS)


def run_operations(dtype: str) -> None:
    """Call operations with arguments that the model does not give them, but tests and users of a backend do."""
    ops = backend_on_cpu("cupy", dtype)
    numbers = np.random.default_rng(0).standard_normal((2, 3000))  # to top-k, several chunks of columns
    for scores in (ops.to_float32(numbers), ops.asarray(numbers)):
        ops.stable_top_k(scores, 4)
    x_BTD = ops.asarray(numbers[None])  # the residual stream in the compute dtype
    ops.add(ops.add_positions(x_BTD, 0), x_BTD)


def model(dtype: str, kind: str | None = None, **settings: Any) -> PegasusXForConditionalGeneration:
    config = PegasusXConfig.preset("tiny", encoder_layers=1, decoder_layers=1, init_std=0.2, **settings)
    weights: dict[str, Any] = random_weights(config, 0, head=True)
    for name, tensor in weights.items():
        if kind and tensor.ndim == 2 and "embed_global" not in name:
            weights[name] = QuantizedMatrix.quantize(tensor, kind)
    return PegasusXForConditionalGeneration(config, weights, backend_on_cpu("cupy", dtype))


# --- Whether CuPy takes it

CHARACTERS = {"E": "bfloat16"}  # what NumPy does not know by its character


def problem(call: Call) -> str | None:
    """Make a call on arrays of CuPy, and return why CuPy refuses it, or None."""
    if isinstance(call.function, np.ufunc) and (found := other_dtype(call.function, call.args)):
        return found
    try:
        call.function(*map(on_cupy, call.args), **{name: on_cupy(value) for name, value in call.options.items()})
    except Exception as error:
        return None if is_for_lack_of_a_gpu(error) else f"{type(error).__name__}: {error}"
    return None


def other_dtype(ufunc: np.ufunc, args: tuple[Any, ...]) -> str | None:
    """Return how the result's dtype differs in CuPy, whose ufuncs take the first loop that inputs can be cast to."""
    loops = getattr(getattr(cupy, ufunc.__name__, None), "types", None)
    if loops is None or ufunc.nout > 1:  # matmul, divmod
        return None
    given = [x.dtype if hasattr(x, "dtype") else type(x) for x in args]
    *inputs, expected = ufunc.resolve_dtypes((*given, None))
    for loop in loops:
        *taken, result = (np.dtype(CHARACTERS.get(char, char)) for char in loop.replace("->", ""))
        if all(map(np.can_cast, inputs, taken)):
            return None if result == expected else f"cupy.{ufunc.__name__} returns {result} in place of {expected}"
    return f"cupy.{ufunc.__name__} takes no {', '.join(map(str, inputs))}"


class WithoutGpu(cupy.ndarray):  # type: ignore[misc]
    """An array whose numbers cannot be copied to the host, where messages of errors would print them."""

    def __repr__(self) -> str:
        return f"array of {self.dtype}"


def on_cupy(value: Any) -> Any:
    """Return an array of CuPy in place of a strict one; without a GPU in the host's memory, which nothing reads."""
    if isinstance(value, list | tuple):
        return type(value)(map(on_cupy, value))
    if not isinstance(value, StrictArray):
        return value
    if cupy.cuda.is_available():
        return cupy.asarray(value._array)
    array = value._array
    get_typename(array.dtype)  # raises where kernels lack the dtype: CuPy looks after it looks for a GPU
    memory = UnownedMemory(array.ctypes.data, max(array.nbytes, 1), array, 0)
    return WithoutGpu(array.shape, array.dtype, memptr=MemoryPointer(memory, 0), strides=array.strides)


def is_for_lack_of_a_gpu(error: Exception) -> bool:
    """Return whether CuPy accepted the call, and then found neither a driver nor the libraries that come with it."""
    if cupy.cuda.is_available():
        return False
    return isinstance(error, cupy.cuda.runtime.CUDARuntimeError) or "libcublas" in str(error)


def main() -> int:
    calls = recorded_calls()
    refused = {entry: why for entry, call in calls.items() if (why := problem(call))}
    accepted = sorted(calls.keys() - refused.keys())
    TABLE.write_text("".join(f"{entry}\n" for entry in accepted), encoding="utf-8")
    for entry in accepted:
        if entry not in CHECKED:
            print(f"new: {entry}")
    for entry in sorted(CHECKED - calls.keys()):
        print(f"not called any more: {entry}")
    for entry, why in refused.items():
        print(f"refused: {entry}: {why}")
    print(f"CuPy {cupy.__version__} takes {len(accepted)} of {len(calls)} calls")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
