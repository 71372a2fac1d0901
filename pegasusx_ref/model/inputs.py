"""Checks of the arguments that users pass: an array, or one clear error before anything is computed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.checkpoint.settings import as_integer
from pegasusx_ref.errors import InputError, reason, shown
from pegasusx_ref.golden.head import IGNORED_LABEL

MAX_TOKENS = 2**24  # of a batch
MAX_DEPTH = 8  # of nested lists


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
    _check_size(name, ids_BT)
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


def labels(values: Any, vocab_size: int) -> np.ndarray:
    """Check labels: token ids, or -100 where no loss is taken, but not everywhere; see `token_ids`."""
    labels_BL = token_ids("labels", values, vocab_size, ignored_labels=True)
    if (labels_BL == IGNORED_LABEL).all():
        raise InputError(f"labels are {IGNORED_LABEL} everywhere: there is no loss without a label")
    return labels_BL


def check_label_shape(labels_BL: np.ndarray | None, target: tuple[int, int]) -> None:
    """Check that there is a label for each target token, if there are labels.

    Args:
        labels_BL: of `labels`, or None.
        target: (B, L).

    Raises:
        InputError: another shape.
    """
    if labels_BL is not None and labels_BL.shape != target:
        raise InputError(f"labels have shape {labels_BL.shape}, but the target has {target}")


def label_smoothing(value: Any) -> float:
    """Check a label smoothing, a number from 0 to 1."""
    number = value.item() if getattr(value, "shape", None) == () else value
    if not isinstance(number, int | float) or not 0 <= number <= 1:
        raise InputError(f"label_smoothing={shown(value)}: expected a number from 0 to 1")
    return float(number)


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
    if mask_BT.dtype.kind not in "biuf" and not _is_floating(mask_BT):
        raise InputError(f"{name} has dtype {mask_BT.dtype}: expected 0 (padding) and 1 (a real token)")
    if not ((mask_BT == 0) | (mask_BT == 1)).all():
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
    _check_size(name, x_BTD)
    if not _is_floating(x_BTD):
        raise InputError(f"{name} has dtype {x_BTD.dtype}: expected floating-point numbers")
    return _native(x_BTD)


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
    """Check that exactly one of some alternative arguments is given.

    Args:
        arguments: values by argument name.

    Raises:
        InputError: none or several are given.
    """
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) + " are given" if given else "none is given"
        alternatives = "exactly one of " if len(arguments) > 1 else ""
        raise InputError(f"pass {alternatives}{', '.join(arguments)}: {found}")


def either_spelling(**arguments: Any) -> Any:
    """Return the argument that is given, of several spellings of one; None if none is.

    Args:
        arguments: values by argument name.

    Raises:
        InputError: several are given.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if len(given) > 1:
        found = " and ".join(f"{name}={shown(value)}" for name, value in given.items())
        raise InputError(f"{found} are two spellings of one argument: pass {next(iter(given))} alone")
    return next(iter(given.values()), None)


def random_seed(value: Any) -> int | None:
    """Check the seed of a random generator.

    Args:
        value: an integer of at least 0, or None for a different one each time.

    Raises:
        InputError: something else.
    """
    if value is None:
        return None
    seed = as_integer(value)
    if seed is None or not 0 <= seed < 2**128:
        raise InputError(f"seed={shown(value)} must be an integer of at least 0 and below 2**128")
    return seed


def flag(name: str, value: Any) -> bool:
    """Check a switch.

    Args:
        name: of the argument, for errors.
        value: True or False, or what Python takes for one of them.

    Raises:
        InputError: something else, such as an array.
    """
    try:
        return bool(value)
    except Exception:
        raise InputError(f"{name}={shown(value)} must be True or False") from None


def return_dict(value: Any) -> None:
    """Check the argument of this name, which transformers has: outputs are no plain tuples here.

    Raises:
        InputError: neither True nor None.
    """
    if value is not None and value is not True:
        raise InputError(f"return_dict={shown(value)} is not supported: call to_tuple() of the output")


def weights(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Check the tensors of a model.

    Args:
        tensors: floating-point arrays or quantized matrices by name.
        shapes: that they must have, by name.

    Raises:
        InputError: a tensor is missing, unknown, of another shape, or not of real numbers.
    """
    if not isinstance(tensors, Mapping):
        raise InputError(f"tensors are a {type(tensors).__name__}: pass arrays by name")
    if others := [*(shapes.keys() - tensors.keys()), *(tensors.keys() - shapes.keys())]:
        problem = "is missing" if others[0] in shapes else "is not part of this model"
        raise InputError(f"tensor {shown(others[0])} {problem}: compare the configuration")
    checked = {}
    for name, shape in shapes.items():
        tensor = tensors[name]
        is_quantized = isinstance(tensor, QuantizedMatrix)
        tensor = tensor if is_quantized else _array(name, tensor)
        if tensor.shape != shape or not (is_quantized or _is_floating(tensor)):
            raise InputError(
                f"tensor {name!r} is {tensor.dtype} of shape {tensor.shape}: expected floating-point numbers of shape "
                f"{shape}"
            )
        checked[name] = tensor if is_quantized else _native(tensor)
    return checked


def _array(name: str, values: Any) -> np.ndarray:
    depth, first = 0, values
    while isinstance(first, list | tuple) and first:
        depth, first = depth + 1, first[0]
        if depth > MAX_DEPTH:  # lists that share their parts may have any number of elements
            raise InputError(f"{name} has lists in lists, more than {MAX_DEPTH} deep: expected 2 or 3")
    try:
        array = to_numpy(values)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise InputError(f"{name} is not an array: {reason(error)}") from error
        raise InputError(
            f"{name} has rows of different lengths: pad them, for example with tokenizer(texts, return_tensors='np')"
        ) from None
    except Exception as error:  # of torch, or of an object's own conversion
        raise InputError(f"{name} is not an array: {reason(error)}") from error
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(f"{name} has masked elements: fill them, or pass an attention mask")
    return array


def _check_size(name: str, array: np.ndarray) -> None:
    """Refuse more tokens than any machine can process: an expanded array of any size takes no memory yet."""
    if array.shape[0] * array.shape[1] > MAX_TOKENS:
        raise InputError(f"{name} has shape {array.shape}: at most {MAX_TOKENS:,} tokens are processed at once")


def _is_floating(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _native(array: np.ndarray) -> np.ndarray:
    """Copy an array of the other byte order, or one whose memory runs backwards."""
    if array.dtype.isnative and all(stride >= 0 for stride in array.strides):
        return array
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
