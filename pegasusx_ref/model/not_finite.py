"""Why logits are not finite: where a second run meets the first such tensor, and what to do about it."""

from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any

import numpy as np

from pegasusx_ref.backend import Array, Backend, QuantizedMatrix
from pegasusx_ref.errors import NumericsError
from pegasusx_ref.tracing import listen

WIDER = {"float16": "float32", "bfloat16": "float32", "float32": "float64"}


class _Found(Exception):
    """Ends a run at the first tensor that is not finite; its argument is the tensor's name."""


def first_not_finite(ops: Backend, run: Callable[[], Any]) -> str | None:
    """Run the model until a tensor is not finite, and return the name of that trace point, or None.

    Args:
        ops: the model's backend.
        run: runs the model, in a context of its own: the caller's listeners are not called a second time.
    """

    def check(name: str, tensor: Array) -> None:
        if not is_finite(ops, tensor):
            raise _Found(name)

    def listening() -> None:
        with listen(check):
            run()

    try:
        Context().run(listening)
    except _Found as found:
        return str(found)
    except NumericsError:  # the tensors are finite, but not in float32, in which logits are compared
        pass
    return None


def explained(
    error: NumericsError, ops: Backend, tensors: Mapping[str, Array], run: Callable[[], Any]
) -> NumericsError:
    """Add the cause and the remedy to an error.

    Args:
        error: from the search.
        ops: the model's backend.
        tensors: the model's weights by name.
        run: see `first_not_finite`.
    """
    point = first_not_finite(ops, run)
    if point is None:
        cause = "a second run found no layer whose tensors are not finite"
    else:
        cause = f"the first tensor that is not finite is {point}"
    wider = WIDER.get(ops.dtype)
    remedy = f"try dtype={wider!r}" if wider else "check the size of the weights and of the input"
    weight = next((name for name, tensor in tensors.items() if not is_finite(ops, tensor)), None)
    if weight is not None:
        damaged = "the checkpoint is damaged: download or copy it again"
        remedy = f"{remedy}; if that fails too, {damaged}" if ops.dtype == "float16" else damaged
        remedy = f"weight {weight} is not finite, {remedy}"
    return NumericsError(f"{error}: {cause}; {remedy}")


def is_finite(ops: Backend, array: Array) -> bool:
    """Return whether an array of the backend, or a quantized matrix, holds neither NaN nor infinity."""
    array = array.absmax if isinstance(array, QuantizedMatrix) else array
    return bool(np.isfinite(ops.to_numpy(array)).all())
