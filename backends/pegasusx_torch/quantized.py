"""Products with quantized matrices: dequantized in chunks, and a single row on a CPU by the NumPy backend's loops."""

from collections.abc import Callable
from math import lcm, prod

import numpy as np
import pegasusx_numpy.quantized
import torch
from pegasusx_numpy.linear import FEW_ROWS
from pegasusx_numpy.thread_pool import balanced_chunks, parallel_for
from torch import Tensor

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.golden import quantization

CHUNK = 2**22  # numbers: more than the layers' matrices have, and a small part of an embedding table


def code_pairs(device: torch.device) -> dict[str, Tensor]:
    """Return the two numbers of each byte, float32 (256, 2), for each code.

    Args:
        device: of the tensors; while a CUDA graph is captured, none can be copied to it.
    """
    return {kind: torch.tensor(pegasusx_numpy.quantized.pairs(kind), device=device) for kind in quantization.CODES}


def dequantized(matrix: QuantizedMatrix, pairs: dict[str, Tensor], start: int, stop: int) -> Tensor:
    """Dequantize rows of a matrix on its device; arguments as for `dequantized_on_device`."""
    if matrix.codes.device.type == "cpu":
        return dequantized_on_cpu(matrix, start, stop)
    return dequantized_on_device(matrix, pairs, start, stop)


def dequantized_on_device(matrix: QuantizedMatrix, pairs: dict[str, Tensor], start: int, stop: int) -> Tensor:
    """Dequantize rows of a matrix by torch's operations.

    Args:
        matrix: on any device.
        pairs: see `code_pairs`.
        start: the first row.
        stop: after the last row.

    Returns:
        float32 (stop - start, in features).
    """
    width = matrix.shape[1]
    if matrix.kind == "int8":
        return scaled(matrix.codes[start:stop], matrix.absmax[start:stop])
    if width % lcm(matrix.block_size, 2):  # rows begin inside of blocks
        return decoded(matrix, matrix.codes, matrix.absmax, pairs, matrix.shape)[start:stop]
    codes = matrix.codes[start * width // 2 : stop * width // 2]
    absmax = matrix.absmax[start * width // matrix.block_size : stop * width // matrix.block_size]
    return decoded(matrix, codes, absmax, pairs, (stop - start, width))


def dequantized_on_cpu(matrix: QuantizedMatrix, start: int, stop: int) -> Tensor:
    """Dequantize rows on all cores; arguments as for `dequantized_on_device`."""
    host = matrix.map(Tensor.numpy)
    numbers = np.empty((stop - start, matrix.shape[1]), dtype=np.float32)

    def work(rows: slice) -> None:
        pegasusx_numpy.quantized.dequantize_into(numbers[rows], host, start + rows.start)

    is_small = numbers.size < pegasusx_numpy.quantized.MIN_PARALLEL_NUMBERS
    parallel_for(balanced_chunks(len(numbers), len(numbers)), work, max_threads=1 if is_small else None)
    return torch.from_numpy(numbers)


def decoded(
    matrix: QuantizedMatrix, codes: Tensor, absmax: Tensor, pairs: dict[str, Tensor], shape: tuple[int, ...]
) -> Tensor:
    """Decode some of a matrix's 4-bit codes.

    Args:
        matrix: for the code and the size of its blocks.
        codes: uint8, from the first one of a block.
        absmax: of these blocks.
        pairs: see `code_pairs`.
        shape: of the result.
    """
    size = prod(shape)
    numbers = pairs[matrix.kind][codes.int()].view(-1)[:size]
    return (numbers * absmax.repeat_interleave(matrix.block_size)[:size]).view(shape)


def scaled(codes: Tensor, absmax: Tensor) -> Tensor:
    """Return what int8 codes (..., in features) stand for, in the order of `golden.quantization.dequantize_int8`."""
    return codes.float() * absmax[..., None] * np.float32(1 / 127).item()


def take(ids: Tensor, matrix: QuantizedMatrix, pairs: dict[str, Tensor]) -> Tensor:
    """Return the rows of a quantized table, float32 (..., in features).

    Args:
        ids: of the rows.
        matrix: on any device.
        pairs: see `code_pairs`.
    """
    rows, width = matrix.shape
    if matrix.kind == "int8":
        return scaled(matrix.codes[ids], matrix.absmax[ids])
    if width % lcm(matrix.block_size, 2):
        return dequantized(matrix, pairs, 0, rows)[ids]
    codes, absmax = matrix.codes.view(rows, -1)[ids], matrix.absmax.view(rows, -1)[ids]
    return decoded(matrix, codes.view(-1), absmax.view(-1), pairs, (*ids.shape, width))


def linear(
    x: Tensor,
    weight: QuantizedMatrix | Tensor,
    bias: Tensor | None,
    pairs: dict[str, Tensor],
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Compute a product with the numbers that a quantized matrix stands for.

    Args:
        x: (..., in features).
        weight: (out features, in features); a tensor where `takes_vector` is true.
        bias: (out features,), or None.
        pairs: see `code_pairs`.
        multiply: computes the product with a tensor in the dtype of `x`.

    Returns:
        (..., out features); float32 for a few rows of half precision on a CPU, else what `multiply` returns.
    """
    num_out, num_in = weight.shape
    if x.device.type == "cpu" and x.numel() <= FEW_ROWS * num_in and x.dtype != torch.float64:
        host = weight.map(Tensor.numpy) if isinstance(weight, QuantizedMatrix) else weight.numpy()
        y = torch.from_numpy(pegasusx_numpy.quantized.linear(x.float().numpy(), host))
        return y if bias is None else y + bias
    step = max(CHUNK // num_in, 1)
    chunks = []
    for start in range(0, num_out, step):
        stop = min(start + step, num_out)
        numbers = dequantized(weight, pairs, start, stop).to(x.dtype)
        chunks.append(multiply(x, numbers, None if bias is None else bias[start:stop]))
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=-1)


def takes_vector(x: Tensor, weight: Tensor) -> bool:
    """Return whether the NumPy backend's compiled loops multiply a single row with a tensor; see its `takes_vector`."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() != x.shape[-1]:
        return False
    return pegasusx_numpy.quantized.takes_vector(x.numpy(), weight.numpy())
