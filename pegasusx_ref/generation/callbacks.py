"""Functions and objects of the caller that take part in a search. [spec 12]"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.logits_processors import Processor


@dataclass(frozen=True)
class Callbacks:
    """What the caller adds to a search, with the names of transformers' `generate`.

    Attributes:
        logits_processor: functions (ids, scores) -> scores, which run after the processors of the settings.
        stopping_criteria: functions (ids, None) -> booleans.
        prefix_allowed_tokens_fn: (number of the source, or of the sample, ids) -> the ids that may follow.
        tokenizer: decodes ids, for stop_strings.
    """

    logits_processor: tuple[Callable[..., Any], ...] = ()
    stopping_criteria: tuple[Callable[..., Any], ...] = ()
    prefix_allowed_tokens_fn: Callable[[int, np.ndarray], Any] | None = None
    tokenizer: Any = None

    @classmethod
    def checked(
        cls,
        config: GenerationConfig,
        logits_processor: Any,
        stopping_criteria: Any,
        prefix_allowed_tokens_fn: Any,
        tokenizer: Any,
    ) -> Self:
        """Check the arguments of `generate`.

        Raises:
            InputError: not functions, or no tokenizer where one is needed.
        """
        if prefix_allowed_tokens_fn is not None and not callable(prefix_allowed_tokens_fn):
            raise InputError(f"prefix_allowed_tokens_fn={shown(prefix_allowed_tokens_fn)} must be a function")
        if config.stop_strings and not all(hasattr(tokenizer, name) for name in ("encode", "decode")):
            raise InputError(
                f"stop_strings={shown(config.stop_strings)} need the model's tokenizer: pass tokenizer=, or leave them "
                "out"
            )
        return cls(
            _functions("logits_processor", logits_processor),
            _functions("stopping_criteria", stopping_criteria),
            prefix_allowed_tokens_fn,
            tokenizer,
        )


def _functions(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    if value is None:
        return ()
    functions = value if isinstance(value, list | tuple) else [value]
    if not all(map(callable, functions)):
        raise InputError(f"{name}={shown(value)} must be a list of functions")
    return tuple(functions)


def processor_of_caller(function: Callable[..., Any], ops: Backend, search_ops: Backend) -> Processor:
    """Call a function (input_ids, scores) -> scores of the caller with the backend's arrays. [spec 12.25]

    Args:
        function: returns the new scores (N, V); a `LogitsProcessor` of transformers, for example.
        ops: the model's backend, whose arrays the function gets: NumPy arrays, tensors of torch, arrays of CuPy.
        search_ops: the backend of the search; sampling runs on the host.

    Returns:
        A processor; the function's result is copied.
    """

    def process(ids: np.ndarray, scores: Array) -> Array:
        result = function(ops.asarray(ids), ops.to_float32(scores))
        try:
            fits = tuple(result.shape) == tuple(scores.shape)
        except Exception:  # of any object
            fits = False
        if not fits:
            raise InputError(
                f"logits_processor: {shown(function)} returned {shown(result)}: return scores of shape "
                f"{tuple(scores.shape)}"
            )
        result = ops.to_float32(result)
        return result if search_ops is ops else ops.to_numpy(result)

    return process
