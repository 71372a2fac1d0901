"""The steps of a mapping: how a tensor of a candidate becomes the one of a trace point. [spec 16]

A step is a function of an array, its argument in the mapping, and the dimensions of the trace point. Steps also run on
placeholders (`placeholder`), arrays without memory of their own, so that a shape is known before a tensor is read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pegasusx_ref.errors import shown
from pegasusx_ref.tracing.trace_points import letters_of
from pegasusx_ref.verification.candidates.inputs import Dimensions


class WrongSize(ValueError):
    """A tensor whose padding or blocks are not those of the model."""


class Placeholder(np.ndarray):
    """An array that stands for a tensor of its shape; all its elements are one and the same zero."""


def placeholder(shape: Sequence[int]) -> np.ndarray:
    """Return a placeholder of a shape."""
    return np.broadcast_to(np.zeros((), np.float32), shape).view(Placeholder)


def concatenate(arrays: Any, axis: Any, _: Dimensions | None = None) -> np.ndarray:
    """Concatenate arrays along an axis."""
    if not all(isinstance(array, Placeholder) for array in arrays):
        return np.concatenate(arrays, axis)
    shape = list(arrays[0].shape)
    without = [np.delete(array.shape, axis).tolist() for array in arrays]
    if any(other != without[0] for other in without):
        raise ValueError(f"shapes {', '.join(str(array.shape) for array in arrays[:3])} differ in another axis")
    shape[axis] = sum(array.shape[axis] for array in arrays)
    return placeholder(shape)


def stack(arrays: Any, axis: Any, _: Dimensions) -> np.ndarray:
    """Put arrays of one shape side by side along a new axis."""
    return concatenate([np.expand_dims(array, axis) for array in arrays], axis)


def reshape(array: np.ndarray, sizes: Any, dimensions: Dimensions) -> np.ndarray:
    """Reshape; sizes are numbers, letters of dimensions, or -1."""
    return array.reshape([number(size, dimensions) for size in listed(sizes)])


def transpose(array: np.ndarray, axes: Any, _: Dimensions) -> np.ndarray:
    """Permute the axes."""
    if len(listed(axes)) != array.ndim:
        raise ValueError(f"expected the numbers of its {array.ndim} axes, not {len(axes)}")
    return array.transpose(axes)


def cut(array: np.ndarray, ranges: Any, dimensions: Dimensions) -> np.ndarray:
    """Keep a range of each named axis: {axis = [start, stop]}; without stop, to the end."""
    for axis, ends in named(ranges).items():
        if len(listed(ends)) not in (1, 2):
            raise ValueError(f"expected [start, stop] or [start], not {shown(ends)}")
        start, stop = (number(end, dimensions) for end in (*ends, None)[:2])
        kept = rows(array, int(axis), start, stop)
        if not kept.size:
            raise ValueError(f"nothing is left of axis {axis}")
        array = kept
    return array


def roll(array: np.ndarray, shifts: Any, dimensions: Dimensions) -> np.ndarray:
    """Move the last entries of an axis to its front: {axis = count}."""
    for axis, count in named(shifts).items():
        if not isinstance(array, Placeholder):
            array = np.roll(array, number(count, dimensions), int(axis))
    return array


def unpad(array: np.ndarray, axis: Any, dimensions: Dimensions) -> np.ndarray:
    """Drop the rows of padding of an axis: K/2 in front in a staggered layer, and those behind the T tokens.

    It is for tensors inside attention. Elsewhere most implementations pad behind the tokens only, in every layer: a
    slice removes that.
    """
    first = dimensions.padding
    remedy = f': without padding in front, use slice = {{ {axis} = [0, "T"] }}' if first else ""
    return rows(array, axis, first, first + dimensions.size("T"), remedy)


def unpad_keys(array: np.ndarray, axis: Any, dimensions: Dimensions) -> np.ndarray:
    """Drop the padding of an axis of keys, on which G global tokens stand in front of the padded tokens."""
    G, first = dimensions.size("G"), dimensions.size("G") + dimensions.padding
    tokens = rows(array, axis, first, first + dimensions.size("T"), "")
    return concatenate([rows(array, axis, 0, G), tokens], axis)


def unblock(array: np.ndarray, axis: Any, dimensions: Dimensions) -> np.ndarray:
    """Take the trace point's block from an axis of padded blocks of K rows, without its rows and keys of padding.

    The axes that remain are those of the trace point: the rows are the last axis but one, and the keys of scores and
    probabilities, G global ones and those of the block, are the last.
    """
    (start, stop), K, G = dimensions.block, dimensions.size("K"), dimensions.size("G")
    first, n = (start + dimensions.padding) % K, (start + dimensions.padding) // K
    blocks = np.moveaxis(array, axis, 0)
    if blocks.ndim < 3:
        raise ValueError("expected an axis of blocks, one of rows, and one of keys or features")
    if blocks.shape[-2] != K:
        raise WrongSize(f"without the blocks, the last axis but one has {blocks.shape[-2]} rows, not K = {K}")
    if len(blocks) <= n:
        raise WrongSize(f"axis {axis} has {len(blocks)} blocks, fewer than {n + 1}")
    block = rows(blocks[n], -2, first, first + stop - start)
    if not letters_of(dimensions.name).endswith("X"):
        return block
    if block.shape[-1] != G + K:
        raise WrongSize(f"the last axis has {block.shape[-1]} keys, not G + K = {G + K}")
    return concatenate([rows(block, -1, 0, G), rows(block, -1, G + first, G + first + stop - start)], -1)


def take_block(array: np.ndarray, axis: Any, dimensions: Dimensions) -> np.ndarray:
    """Take the rows of the trace point's block from an axis of all T tokens."""
    return rows(array, axis, *dimensions.block, "")


def split_heads(array: np.ndarray, _: Any, dimensions: Dimensions) -> np.ndarray:
    """Split features into heads: (…, T, D) becomes (…, H, T, F)."""
    H = dimensions.size("H")
    return np.moveaxis(array.reshape(*array.shape[:-1], H, array.shape[-1] // H), -2, -3)


def merge_heads(array: np.ndarray, _: Any, __: Dimensions) -> np.ndarray:
    """Concatenate the heads of each token: (…, H, T, F) becomes (…, T, D)."""
    return np.moveaxis(array, -3, -2).reshape(*array.shape[:-3], array.shape[-2], array.shape[-3] * array.shape[-1])


def add(array: np.ndarray, other: Any, _: Dimensions) -> np.ndarray:
    """Add another tensor of the candidate, such as a bias that is a node of its own."""
    other = np.broadcast_to(other, array.shape)
    return array if isinstance(array, Placeholder) else array + other


JOINS: dict[str, Callable[[Any, Any, Dimensions], np.ndarray]] = {"concat": concatenate, "stack": stack}
BLOCKS = {"unblock": unblock, "block": take_block}  # these make tensors of single blocks from one of all blocks
STEPS: dict[str, Callable[[Any, Any, Dimensions], np.ndarray]] = {
    **JOINS,
    **BLOCKS,
    "reshape": reshape,
    "transpose": transpose,
    "slice": cut,
    "roll": roll,
    "unpad": unpad,
    "unpad_keys": unpad_keys,
    "split_heads": split_heads,
    "merge_heads": merge_heads,
    "add": add,
}


def rows(array: np.ndarray, axis: int, start: int, stop: int | None = None, remedy: str | None = None) -> np.ndarray:
    """Return a range of an axis.

    Args:
        array: any array.
        axis: of the array.
        start: first entry.
        stop: behind the last one; None is the end.
        remedy: ends the message where entries of the range do not exist; None means that they may not.
    """
    moved = np.moveaxis(array, axis, 0)
    if remedy is not None and stop is not None and len(moved) < stop:
        raise WrongSize(f"axis {axis} has {len(moved)} entries, fewer than {stop}{remedy}")
    return np.moveaxis(moved[start:stop], 0, axis)


def listed(value: Any) -> Sequence[Any]:
    """Check that an argument is a list."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, not {shown(value)}")
    return value


def named(value: Any) -> Mapping[str, Any]:
    """Check that an argument names axes."""
    if not isinstance(value, Mapping):
        raise ValueError(f'expected a table by axis, such as {{1 = [0, "T"]}} or {{-1 = "G"}}, not {shown(value)}')
    return value


def number(size: Any, dimensions: Dimensions) -> Any:
    """Return a number of a step: itself, or the size of the dimension that it names."""
    return dimensions.size(size) if isinstance(size, str) else size
