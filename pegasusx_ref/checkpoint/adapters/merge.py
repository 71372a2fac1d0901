"""Low-rank adapters of PEFT: what each changes in the tensors of its base model. [spec 14]"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.errors import CheckpointError, shown


class Update(NamedTuple):
    """A low-rank update of a matrix.

    Attributes:
        left: (out, r).
        right: (r, in).
        scale: of their product.
        magnitude: with DoRA the lengths that the rows (out, 1) of the sum get, or its columns (1, in); else None.
    """

    left: np.ndarray
    right: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""
        return self.left.shape[0], self.right.shape[1]


class Adapter(NamedTuple):
    """The changes of an adapter, by the names of the base model's tensors.

    Attributes:
        path: the file with its tensors.
        updates: low-rank updates of matrices.
        biases: what is added to biases, and its factor.
        replaced: tensors of the base model that were trained with it.
        own: tensors of the modules that the adapter has copies of; they untie tied tables.
        is_tied: whether the updates of tied tables are one.
    """

    path: Path
    updates: dict[str, Update]
    biases: dict[str, tuple[np.ndarray, float]]
    replaced: dict[str, np.ndarray]
    own: dict[str, np.ndarray]
    is_tied: bool


def merged(weight: np.ndarray, update: Update) -> np.ndarray:
    """Add a low-rank update to a matrix. [spec 14.9]

    Args:
        weight: (out, in).
        update: for a matrix of that shape.

    Returns:
        A new matrix, in float64 if the given one is, else in float32.

    Source: arXiv 2106.09685 section 4.1, arXiv 2402.09353 equation 5; peft's `merge_and_unload`.
    """
    dtype = np.float64 if weight.dtype == np.float64 else np.float32
    total: np.ndarray[Any, np.dtype[np.floating[Any]]] = weight.astype(dtype)
    with np.errstate(all="ignore"):  # what is not finite is found when the model generates
        total += (update.left.astype(dtype) @ update.right.astype(dtype)) * update.scale
        if update.magnitude is not None:
            axis = 1 if update.magnitude.shape[1] == 1 else 0
            total *= update.magnitude.astype(dtype) / np.linalg.norm(total, axis=axis, keepdims=True)
    return total


def changes(adapter: Adapter, tensors: Mapping[str, np.ndarray], tied: Sequence[str]) -> dict[str, np.ndarray]:
    """Compute the tensors that an adapter changes.

    Args:
        adapter: the adapter.
        tensors: of the base model, by name.
        tied: the names of the embedding table, the one in `tensors` first; empty if they are tensors of their own. As
            in peft, a change of one of them changes all, except the modules that the adapter has copies of.

    Returns:
        The new tensors by name.

    Raises:
        CheckpointError: a part of the adapter does not fit the base model, or contradicts another one.
    """

    def home(name: str) -> str:
        return tied[0] if name in tied else name

    changed: dict[str, np.ndarray] = {}
    for name in [*adapter.replaced, *adapter.own, *adapter.updates, *adapter.biases]:
        if home(name) not in tensors:
            raise CheckpointError(f"{adapter.path}: changes tensor {shown(name)}, which the base model does not have")
    for name, tensor in adapter.replaced.items():
        if not np.array_equal(changed.setdefault(home(name), tensor), tensor, equal_nan=True):
            raise CheckpointError(f"{adapter.path}: has two different tables for {tied[0]!r}, which is tied: {name!r}")
    first: dict[str, Update] = {}
    for name, update in sorted(adapter.updates.items(), key=lambda item: item[0] not in tied[:1]):
        weight = changed.get(home(name), tensors[home(name)])
        if update.shape != weight.shape:
            raise CheckpointError(
                f"{adapter.path}: the adapter of {name!r} has shape {update.shape}, the base model's tensor "
                f"{weight.shape}: it was trained on another model"
            )
        if adapter.is_tied and home(name) in first:
            if not _are_equal(first[home(name)], update):
                raise CheckpointError(
                    f"{adapter.path}: the adapters of {name!r} and {home(name)!r} differ, though tied"
                )
            continue
        first[home(name)] = update
        changed[home(name)] = merged(weight, update)
    for name, (bias, scale) in adapter.biases.items():
        base = changed.get(name, tensors[name])
        if base.shape != bias.shape:
            raise CheckpointError(
                f"{adapter.path}: adds a bias of shape {bias.shape} to {name!r} of shape {base.shape}"
            )
        with np.errstate(all="ignore"):
            changed[name] = base + bias.astype(np.float32) * scale
    if not adapter.own.keys().isdisjoint(tied):
        changed |= dict.fromkeys(tied, changed.get(tied[0], tensors[tied[0]]))
    return changed | adapter.own


def _are_equal(x: Update, y: Update) -> bool:
    return x.scale == y.scale and np.array_equal(x.left, y.left) and np.array_equal(x.right, y.right)
