"""Quantized matrices in a weight file: the tensors that bitsandbytes stores for each. [spec 14.12]"""

import json
from collections.abc import Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend.quantized import BLOCK_SIZES, DoubleQuantized, QuantizedMatrix
from pegasusx_ref.checkpoint.settings import is_integer
from pegasusx_ref.checkpoint.tensor_names import LINEAR
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.json_files import parse_object
from pegasusx_ref.files.reading import reading
from pegasusx_ref.golden.quantization import ABSMAX_BLOCK_SIZE, BLOCK_SIZE, CODES

METHOD = "bitsandbytes"
SETTINGS = "quantization_config"  # the entry of config.json
STATE = ".quant_state.bitsandbytes__"  # behind a matrix's name and in front of the kind
SCALES, FORMAT = "SCB", "weight_format"  # in place of "weight"; the format of codes in rows is 0
STATE_SIZE = 256  # bytes, filled with spaces, so that a file's layout is known before a matrix is quantized
MAX_STATE_SIZE = 2**16
MAX_SIDE = 2**31  # of a matrix
REMEDY = "download the checkpoint again, or quantize its original again"


class Form(NamedTuple):
    """How a tensor is stored.

    Attributes:
        shape: of the tensor.
        dtype: of its numbers; bitsandbytes rounds those of a quantized matrix to it.
        kind: one of `KINDS` for a quantized matrix, else None.
        block_size: numbers that share a scale.
        nested_block_size: scales that share a scale.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: str | None = None
    block_size: int = BLOCK_SIZE
    nested_block_size: int = ABSMAX_BLOCK_SIZE

    def layout(self, name: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype of each stored tensor; a quantized matrix has several.

        Args:
            name: of the tensor in the file.
        """
        size = prod(self.shape)
        if self.kind is None:
            return {name: (self.shape, self.dtype)}
        if self.kind == "int8":
            place = name.removesuffix("weight")
            return {
                name: (_codes_shape(name, self.shape), "int8"),
                place + SCALES: (self.shape[:1], "float32"),
                place + FORMAT: ((), "uint8"),
            }
        kind, _, is_double = self.kind.partition("-")
        blocks = -(-size // self.block_size)
        layout: dict[str, tuple[tuple[int, ...], str]] = {
            name: ((-(-size // 2), 1), "uint8"),
            f"{name}.absmax": ((blocks,), "uint8" if is_double else "float32"),
            f"{name}.quant_map": ((16,), "float32"),
            name + STATE + kind: ((STATE_SIZE,), "uint8"),
        }
        if is_double:
            layout[f"{name}.nested_absmax"] = ((-(-blocks // self.nested_block_size),), "float32")
            layout[f"{name}.nested_quant_map"] = ((256,), "float32")
        return layout


def form_of(tensor: Any, dtype: str) -> Form:
    """Return the form of a tensor that is stored as it is.

    Args:
        tensor: an array or a quantized matrix.
        dtype: see `Form`.
    """
    if not isinstance(tensor, QuantizedMatrix):
        return Form(tuple(tensor.shape), dtype)
    nested = ABSMAX_BLOCK_SIZE if tensor.nested is None else tensor.nested.block_size
    return Form(tensor.shape, dtype, kind_of(tensor), tensor.block_size, nested)


def kind_of(matrix: QuantizedMatrix) -> str:
    """Return the kind of a matrix, one of `KINDS`."""
    return matrix.kind if matrix.nested is None else f"{matrix.kind}-double"


def stored(name: str, tensor: Any, dtype: str) -> dict[str, np.ndarray]:
    """Return the tensors of a file that stand for one tensor of the model, as `Form.layout` lists them. [spec 18.9]

    Args:
        name: of the tensor in the file.
        tensor: an array, or a quantized matrix on the host.
        dtype: see `Form`.
    """
    if not isinstance(tensor, QuantizedMatrix):
        return {name: tensor}
    if tensor.kind == "int8":
        place = name.removesuffix("weight")
        codes = tensor.codes.reshape(_codes_shape(name, tensor.shape))
        return {name: codes, place + SCALES: tensor.absmax, place + FORMAT: np.array(0, np.uint8)}
    arrays = {
        name: tensor.codes.reshape(-1, 1),
        f"{name}.absmax": tensor.absmax,
        f"{name}.quant_map": CODES[tensor.kind],
    }
    state = {"quant_type": tensor.kind, "blocksize": tensor.block_size, "dtype": dtype, "shape": tensor.shape}
    if nested := tensor.nested:
        arrays[f"{name}.absmax"] = nested.codes
        arrays[f"{name}.nested_absmax"], arrays[f"{name}.nested_quant_map"] = nested.absmax, nested.code
        state |= {"nested_blocksize": nested.block_size, "nested_dtype": "float32"}
        state["nested_offset"] = float(nested.offset)
    text = json.dumps(state).encode().ljust(STATE_SIZE)
    return arrays | {name + STATE + tensor.kind: np.frombuffer(text, np.uint8)}


def check_method(place: Path, settings: Any) -> None:
    """Check that weights were quantized by bitsandbytes.

    Args:
        place: the checkpoint folder, for errors.
        settings: the entry `quantization_config` of its config.json.

    Raises:
        CheckpointError: by something else.
    """
    method = settings.get("quant_method", METHOD) if isinstance(settings, dict) else settings
    if method != METHOD:
        raise CheckpointError(
            f"{place}: its weights are quantized by {shown(method)}, but only {METHOD} is read: use the checkpoint "
            "that it was made from"
        )


def joined(tensors: Mapping[str, np.ndarray], files: Mapping[str, Path]) -> dict[str, Any]:
    """Put the tensors that bitsandbytes stores for a matrix together. [spec 14.12]

    Args:
        tensors: of weight files, by name.
        files: the file of each, by the same names.

    Returns:
        Tensors by name, with a `QuantizedMatrix` for those of a matrix; its codes are those of the file, not copied.

    Raises:
        CheckpointError: a tensor of a matrix is missing or does not fit the others, or codes belong to no matrix.
    """
    rest, matrices = dict(tensors), {}
    for name in tensors:
        weight, state, kind = name.partition(STATE)
        place, dot, last = name.rpartition(".")
        if state or last == SCALES:
            weight = weight if state else f"{place}{dot}weight"
            expected = f"matrix {shown(weight)} as {METHOD} stores it"
            with reading(files[name], expected, CheckpointError, REMEDY), np.errstate(all="ignore"):
                matrices[weight] = _four_bits(rest, weight, kind) if state else _eight_bits(rest, weight)
    for name, tensor in rest.items():
        if tensor.dtype.kind in "iu":
            raise CheckpointError(
                f"{files[name]}: tensor {shown(name)} has dtype {tensor.dtype}, but no other says what its codes stand "
                f"for: {REMEDY}"
            )
    kinds = {matrix.kind: name for name, matrix in matrices.items()}
    if len(kinds) > 1:
        (kind, name), (other, second) = list(kinds.items())[:2]
        raise CheckpointError(
            f"{files[name]}: {shown(name)} is quantized as {kind}, {shown(second)} as {other}: quantize all alike"
        )
    return rest | matrices


def _codes_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of int8 codes; that of a table is another, or transformers would take them for its numbers."""
    return shape if name.endswith(LINEAR) else (prod(shape), 1)


def _eight_bits(rest: dict[str, np.ndarray], name: str) -> QuantizedMatrix:
    place = name.removesuffix("weight")
    codes, scales = _taken(rest, name, "int8"), _scales(rest, place + SCALES)
    if codes.ndim == 2 and codes.shape[1] == 1 and scales.size and codes.size % scales.size == 0:
        codes = codes.reshape(scales.size, -1)
    if codes.ndim != 2 or len(codes) != scales.size or not codes.size:
        raise ValueError(f"codes of shape {codes.shape} with {scales.size} scales")
    layout = rest.pop(place + FORMAT, None)  # older versions store none
    if layout is not None and (layout.size != 1 or layout.any()):
        raise ValueError(f"{FORMAT} {shown(layout.tolist())}, but only 0 is read, codes in rows")
    return QuantizedMatrix("int8", codes.shape, codes, scales)


def _four_bits(rest: dict[str, np.ndarray], name: str, kind: str) -> QuantizedMatrix:
    text = _taken(rest, name + STATE + kind, "uint8")
    if text.size > MAX_STATE_SIZE:
        raise ValueError(f"a quant_state of {text.size:,} bytes")
    state = parse_object(text.tobytes())
    if kind not in CODES or state["quant_type"] != kind:
        raise ValueError(f"quant_type {shown(state['quant_type'])}, but {', '.join(CODES)} are read")
    shape = state["shape"]
    if not isinstance(shape, list) or len(shape) != 2 or not all(is_integer(n) and 0 < n < MAX_SIDE for n in shape):
        raise ValueError(f"shape {shown(shape)}")
    size, block_size = shape[0] * shape[1], _block_size(state, "blocksize")
    codes = _taken(rest, name)  # the dtype is that of bnb_4bit_quant_storage
    if codes.nbytes != -(-size // 2):
        raise ValueError(f"{codes.nbytes:,} bytes of codes for shape {shape}")
    code = _scales(rest, f"{name}.quant_map", 16)
    if not np.allclose(code, CODES[kind], rtol=1e-6, atol=0):
        raise ValueError(f"quant_map {shown(code.tolist())} is not that of {kind}")
    bits = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    blocks = -(-size // block_size)
    absmax, nested = f"{name}.absmax", f"{name}.nested_absmax"
    if nested not in rest:
        return QuantizedMatrix(kind, (shape[0], shape[1]), bits, _scales(rest, absmax, blocks), block_size)
    nested_block_size, offset = _block_size(state, "nested_blocksize"), state["nested_offset"]
    if not isinstance(offset, int | float) or isinstance(offset, bool) or not isfinite(np.float32(offset)):
        raise ValueError(f"nested_offset {shown(offset)}")
    double = DoubleQuantized(
        _sized(_taken(rest, absmax, "uint8"), absmax, blocks),
        _scales(rest, nested, -(-blocks // nested_block_size)),
        np.float32(offset),
        _scales(rest, f"{name}.nested_quant_map", 256),
        nested_block_size,
    )
    matrix = QuantizedMatrix(kind, (shape[0], shape[1]), bits, None, block_size).with_nested(double)
    _finite(matrix.absmax, absmax)
    return matrix


def _block_size(state: Mapping[str, Any], name: str) -> int:
    value = state[name]
    if not is_integer(value) or value not in BLOCK_SIZES:
        raise ValueError(f"{name} {shown(value)}, but {', '.join(map(str, BLOCK_SIZES))} are read")
    return value


def _scales(rest: dict[str, np.ndarray], name: str, size: int | None = None) -> np.ndarray:
    """Take finite numbers in float32."""
    array = _taken(rest, name)
    if array.dtype.kind in "iub":
        raise ValueError(f"{shown(name)} of dtype {array.dtype}")
    return _finite(_sized(array, name, array.size if size is None else size).astype(np.float32, copy=False), name)


def _sized(array: np.ndarray, name: str, size: int) -> np.ndarray:
    if array.size != size:
        raise ValueError(f"{shown(name)} of {array.size:,} numbers, expected {size:,}")
    return array.reshape(-1)


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError(f"{shown(name)} has a number that is not finite")
    return array


def _taken(rest: dict[str, np.ndarray], name: str, dtype: str | None = None) -> np.ndarray:
    array = rest.pop(name)
    if dtype not in (None, array.dtype.name):
        raise ValueError(f"{shown(name)} of dtype {array.dtype}, expected {dtype}")
    return array
