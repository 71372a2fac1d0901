"""What an implementation computes in: the precision of operands, sums, results, softmax and parameters. [spec 16]"""

from collections.abc import Iterable
from typing import NamedTuple

from pegasusx_ref.errors import InputError, shown

FLOAT64, FLOAT32, TF32, BFLOAT16, FLOAT16 = 2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8, 2.0**-11
TINY = 2.0**-126  # the smallest normal number of float32, TF32 and bfloat16
TINY_FLOAT16 = 2.0**-24  # the smallest number of any kind


class Arithmetic(NamedTuple):
    """Unit roundoffs of an implementation. [spec 13.1]

    Attributes:
        name: one of `ARITHMETICS`, with the settings that differ.
        operand: of the operands of a product, where they are rounded inside the operation; otherwise 0.
        sum: of sums and of everything else that stays inside an operation.
        result: of what an operation returns.
        tiny: the smallest normal number, or the smallest number of any kind in float16; smaller ones lose digits or
            become 0.
        softmax: of what stays inside a softmax.
        parameters: of weights where they are used, if they are stored in a finer dtype than results; otherwise 0.
        dtype: of results.
        stored: the dtype in which parameters are stored.
        residual: of results that belong to the residual stream, and of the logits: as `result`, or finer.
    """

    name: str
    operand: float
    sum: float
    result: float
    tiny: float
    softmax: float
    parameters: float
    dtype: str
    stored: str
    residual: float

    def of_residual(self) -> "Arithmetic":
        """Return the arithmetic of operations whose results belong to the residual stream, and of the logits."""
        tiny = min(self.tiny, TINY) if self.residual < self.result else self.tiny
        return self._replace(result=self.residual, tiny=tiny)


def _arithmetic(name: str, dtype: str, operand: float, total: float, result: float, tiny: float) -> Arithmetic:
    return Arithmetic(name, operand, total, result, tiny, total, 0.0, dtype, dtype, result)


# The names of JAX (DotAlgorithmPreset: operands, sums) stand for products of float32 arrays, as on a TPU. In x3, x6 and
# x9, an operand is the sum of two or three numbers of the low precision, and products of two small parts are left out.
ARITHMETICS = {
    a.name: a
    for a in (
        _arithmetic("float64", "float64", 0.0, FLOAT64, FLOAT64, 2.0**-1022),
        _arithmetic("float32", "float32", 0.0, FLOAT32, FLOAT32, TINY),
        _arithmetic("tf32", "float32", TF32, FLOAT32, FLOAT32, TINY),
        _arithmetic("bfloat16", "bfloat16", 0.0, FLOAT32, BFLOAT16, TINY),
        _arithmetic("float16", "float16", 0.0, FLOAT32, FLOAT16, TINY_FLOAT16),
        _arithmetic("TF32_TF32_F32_X3", "float32", TF32**2, FLOAT32, FLOAT32, TINY),
        _arithmetic("BF16_BF16_F32", "float32", BFLOAT16, FLOAT32, FLOAT32, TINY),
        _arithmetic("BF16_BF16_F32_X3", "float32", BFLOAT16**2, FLOAT32, FLOAT32, TINY),
        _arithmetic("BF16_BF16_F32_X6", "float32", BFLOAT16**3, FLOAT32, FLOAT32, TINY),
        _arithmetic("BF16_BF16_BF16", "float32", BFLOAT16, BFLOAT16, FLOAT32, TINY),
        _arithmetic("F16_F16_F32", "float32", FLOAT16, FLOAT32, FLOAT32, TINY_FLOAT16),
        _arithmetic("F16_F16_F16", "float16", 0.0, FLOAT16, FLOAT16, TINY_FLOAT16),
    )
}
ALIASES = {
    "F64_F64_F64": "float64",
    "F32_F32_F32": "float32",
    "TF32_TF32_F32": "tf32",
    "BF16_BF16_F32_X9": "float32",
    "CUBLAS_COMPUTE_64F": "float64",
    "CUBLAS_COMPUTE_32F": "float32",
    "CUBLAS_COMPUTE_32F_FAST_TF32": "tf32",
    "CUBLAS_COMPUTE_32F_FAST_16BF": "BF16_BF16_F32",
    "CUBLAS_COMPUTE_32F_FAST_16F": "F16_F16_F32",
    "CUBLAS_COMPUTE_32F_EMULATED_16BFX9": "float32",
    "CUBLAS_COMPUTE_16F": "F16_F16_F16",
}
DTYPES = {"float64": FLOAT64, "float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
SETTINGS = ("softmax", "parameters", "residual")


def get_arithmetic(name: str | Arithmetic) -> Arithmetic:
    """Return the arithmetic of a name such as "bfloat16, softmax=bfloat16, parameters=float32". [spec 16.19]

    Args:
        name: a key of `ARITHMETICS` or `ALIASES`, and settings: the dtype inside a softmax, that of the parameters, and
            that of the residual stream with the logits.

    Raises:
        InputError: the name, a setting or its dtype is unknown.
    """
    if isinstance(name, Arithmetic):
        return name
    base, *settings = [part.strip() for part in name.split(",")] if isinstance(name, str) else [name]
    if not isinstance(base, str) or (found := ARITHMETICS.get(ALIASES.get(base, base))) is None:
        names = ", ".join((*ARITHMETICS, *ALIASES))
        raise InputError(f"arithmetic={shown(name)} is not known: pass one of {names}")
    for setting in settings:
        what, _, dtype = (part.strip() for part in setting.partition("="))
        if what not in SETTINGS or dtype not in DTYPES:
            raise InputError(
                f"arithmetic={shown(name)}: {shown(setting)} is not known: pass softmax=, parameters= or residual= "
                f"with one of {', '.join(DTYPES)}"
            )
        if what == "softmax":
            found = found._replace(softmax=DTYPES[dtype])
        elif what == "residual":
            found = found._replace(residual=DTYPES[dtype])
        else:
            rounded = found.result if DTYPES[dtype] < DTYPES[found.dtype] else 0.0
            found = found._replace(parameters=rounded, stored=dtype)
    return found._replace(name=", ".join((base, *settings)))


def is_coarser(one: Arithmetic, other: Arithmetic) -> bool:
    """Return whether no roundoff of an arithmetic is smaller than the other's: what passes there passes here."""
    parts = ("operand", "sum", "result", "tiny", "softmax", "parameters", "residual")
    return all(getattr(one, part) >= getattr(other, part) for part in parts)


def by_precision(arithmetics: Iterable[Arithmetic]) -> list[str]:
    """Return the names of arithmetics, the finest first."""
    return [a.name for a in sorted(arithmetics, key=lambda a: (max(a.operand, a.result), a.operand + a.sum + a.result))]
