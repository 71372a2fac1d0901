"""Checks of the arguments that users pass: an array, or one clear error before anything is computed."""

from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError
from pegasusx_ref.golden.head import IGNORED_LABEL


def token_ids(name: str, values: Any, vocab_size: int, ignored_labels: bool = False) -> np.ndarray:
    """Check token ids.

    Args:
        name: of the argument, for errors.
        values: integers (B, T), an array or nested lists.
        vocab_size: V; ids lie in [0, V).
        ignored_labels: allow -100.

    Returns:
        int64 ids (B, T).

    Raises:
        InputError: not integers, not two-dimensional, empty, or out of range.
    """
    ids_BT = _array(name, values)
    if ids_BT.size and ids_BT.dtype.kind not in "iu":
        raise InputError(f"{name} has dtype {ids_BT.dtype}: token ids are integers")
    if ids_BT.ndim != 2:
        raise InputError(f"{name} has shape {ids_BT.shape}: expected (batch, tokens); wrap one sequence as [ids]")
    if not ids_BT.size:
        raise InputError(f"{name} has shape {ids_BT.shape}: at least one sequence of at least one token is needed")
    in_range_BT = (ids_BT >= 0) & (ids_BT < vocab_size)
    if ignored_labels:
        in_range_BT |= ids_BT == IGNORED_LABEL
    if not in_range_BT.all():
        row, column = np.argwhere(~in_range_BT)[0]
        raise InputError(
            f"{name}[{row}, {column}] is {ids_BT[row, column]}: token ids of this model lie in [0, {vocab_size})"
            + (f", or are {IGNORED_LABEL} where no loss is taken" if ignored_labels else "")
        )
    return ids_BT.astype(np.int64)


def mask(name: str, values: Any, shape: tuple[int, int]) -> np.ndarray | None:
    """Check an attention mask.

    Args:
        name: of the argument, for errors.
        values: (B, T) of 0 and 1, or None.
        shape: the shape it must have.

    Returns:
        Booleans (B, T), True for a real token; None if every token is real.

    Raises:
        InputError: another shape, or values other than 0 and 1.
    """
    if values is None:
        return None
    mask_BT = _array(name, values)
    if mask_BT.shape != shape:
        raise InputError(f"{name} has shape {mask_BT.shape}: expected {shape}, one value for each token")
    if not np.isin(mask_BT, (0, 1)).all():
        raise InputError(f"{name} has values other than 0 (padding) and 1 (a real token)")
    return None if mask_BT.all() else mask_BT.astype(bool)


def hidden_states(name: str, values: Any, width: int) -> np.ndarray:
    """Check embeddings or encoder outputs.

    Args:
        name: of the argument, for errors.
        values: numbers (B, T, D).
        width: D.

    Returns:
        Floating-point numbers (B, T, D).

    Raises:
        InputError: another shape, or not real numbers.
    """
    x_BTD = _array(name, values)
    if x_BTD.ndim != 3 or x_BTD.shape[2] != width or not x_BTD.size:
        raise InputError(f"{name} has shape {x_BTD.shape}: expected (batch, tokens, d_model={width}), each at least 1")
    if x_BTD.dtype.kind != "f" and x_BTD.dtype.name != "bfloat16":
        raise InputError(f"{name} has dtype {x_BTD.dtype}: expected floating-point numbers")
    return x_BTD


def encoder_states(outputs: Any) -> Any:
    """Return the encoder's last hidden state from any form of encoder outputs.

    Args:
        outputs: an output of `encode` or of a model (also transformers'), a tuple, or the states themselves.
    """
    for name in ("encoder_last_hidden_state", "last_hidden_state"):
        outputs = getattr(outputs, name, outputs)
    return outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs


def same_batch(**batches: int) -> None:
    """Check that several arguments have the same batch size.

    Args:
        batches: number of sequences by argument name.

    Raises:
        InputError: they differ.
    """
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f"{name}: {size}" for name, size in batches.items())
        raise InputError(f"batch sizes differ ({sizes}): pass the same number of sequences")


def exactly_one(**arguments: Any) -> None:
    """Check that exactly one of several alternative arguments is given.

    Args:
        arguments: values by argument name.

    Raises:
        InputError: none or several are given.
    """
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) + " are given" if given else "none is given"
        raise InputError(f"pass exactly one of {', '.join(arguments)}: {found}")


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return to_numpy(values)
    except TypeError as error:
        raise InputError(f"{name} is not an array: {error}") from None
    except ValueError:
        raise InputError(
            f"{name} has rows of different lengths: pad them, for example with tokenizer(texts, return_tensors='np')"
        ) from None
