"""Which matrices of a model are quantized, and what config.json says of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pegasusx_ref.backend.quantized import KINDS, QuantizedMatrix
from pegasusx_ref.checkpoint.bitsandbytes import SETTINGS, kind_of
from pegasusx_ref.checkpoint.tensor_names import HEAD_PARTS, LINEAR, PREFIX
from pegasusx_ref.errors import CheckpointError, InputError, shown
from pegasusx_ref.model.quantization_config import COMPUTE_DTYPES, BitsAndBytesConfig
from pegasusx_ref.model.weights import EMBEDDING, EMBEDDING_COPIES

TABLES = (EMBEDDING, *EMBEDDING_COPIES)
HEAD = "lm_head"


class Quantization(NamedTuple):
    """What is quantized.

    Attributes:
        kind: one of `KINDS`.
        embedding: whether the embedding tables are quantized too.
        skipped: see `llm_int8_skip_modules`.
        compute_dtype: what the model computes in where no other dtype is given.
        may_use_float32: whether the model computes in float32 where the backend has no half precision.
    """

    kind: str
    embedding: bool = False
    skipped: Sequence[str] = ()
    compute_dtype: Any = None
    may_use_float32: bool = False

    @classmethod
    def requested(
        cls, kind: str | None = None, embedding: bool = False, settings: Any = None, **plain: bool
    ) -> "Quantization | None":
        """Return what is quantized by the arguments of `from_pretrained`; None for nothing.

        Args:
            kind: the argument `quantization`.
            embedding: the argument `quantize_embedding`.
            settings: the argument `quantization_config`.
            plain: load_in_4bit and load_in_8bit, settings of their own in older versions of transformers.

        Raises:
            InputError: an unknown kind, or several arguments that say different things.
        """
        chosen = {name: value for name, value in plain.items() if value is not False}
        if (kind is not None) + (settings is not None) + bool(chosen) > 1:
            raise InputError(f"pass one of quantization, quantization_config{''.join(f', {name}' for name in plain)}")
        settings = chosen or settings
        if kind is not None and (not isinstance(kind, str) or kind not in KINDS):
            raise InputError(f"quantization={shown(kind)} is unknown: choose one of {', '.join(KINDS)}")
        if not isinstance(embedding, bool):
            raise InputError(f"quantize_embedding={shown(embedding)} must be True or False")
        if kind is not None:
            return cls(kind, embedding)
        if settings is None:
            if embedding:
                raise InputError("quantize_embedding=True needs a quantization, such as quantization='nf4'")
            return None
        config = BitsAndBytesConfig.from_dict(settings)
        skipped, dtype = tuple(config.llm_int8_skip_modules or ()), config.bnb_4bit_compute_dtype
        return cls(config.kind, embedding, skipped, dtype, True)

    def kind_for(self, name: str, head: bool) -> str | None:
        """Return the kind of a tensor, None if it is not quantized.

        Args:
            name: of the tensor, without prefix.
            head: whether the model has a language-model head, and its names begin with "model.".
        """
        if name in TABLES:
            return self.kind if self.embedding else None
        module = module_name(name, head)
        if not name.endswith(LINEAR) or any(_matches(pattern, module) for pattern in self.skipped):
            return None
        return self.kind


def quantize_weights(
    tensors: Mapping[str, Any], quantization: Quantization | None, head: bool, place: Any
) -> dict[str, Any]:
    """Quantize those tensors of a model that are to be, one after the other.

    Args:
        tensors: by name, without prefix.
        quantization: what is quantized; None for nothing.
        head: see `Quantization.kind_for`.
        place: the checkpoint, for errors.

    Raises:
        CheckpointError: see `quantized`.
    """
    if quantization is None:
        return dict(tensors)
    return {name: quantized(name, x, quantization.kind_for(name, head), place) for name, x in tensors.items()}


def quantized(name: str, tensor: Any, kind: str | None, place: Any) -> Any:
    """Quantize a tensor.

    Args:
        name: of the tensor.
        tensor: an array, or a matrix that is quantized already.
        kind: one of `KINDS`; None returns the tensor itself.
        place: the checkpoint, for errors.

    Raises:
        CheckpointError: a number is not finite, or the matrix is quantized otherwise.
    """
    if kind is None:
        return tensor
    if isinstance(tensor, QuantizedMatrix):
        if kind_of(tensor) != kind:
            raise CheckpointError(
                f"{place}: is already quantized as {kind_of(tensor)}, not {kind}: omit the quantization, or convert it "
                "with --dtype float32 first"
            )
        return tensor
    try:
        return QuantizedMatrix.quantize(tensor, kind)
    except InputError as error:  # it begins with the place of the number
        raise CheckpointError(f"{place}: tensor {shown(name)}{error}") from None


def quantization_entries(kinds: Mapping[str, str | None], dtype: str, head: bool) -> dict[str, Any]:
    """Return the entry of config.json for tensors that are stored quantized; none for others.

    Args:
        kinds: of each tensor, None for one that is not quantized, by name.
        dtype: of those.
        head: see `Quantization.kind_for`.
    """
    kind = next((kind for name, kind in kinds.items() if kind is not None and name not in TABLES), None)
    if kind is None:
        return {}
    others = [module_name(name, head) for name, kind in kinds.items() if kind is None and name.endswith(LINEAR)]
    name, _, is_double = kind.partition("-")
    settings = BitsAndBytesConfig(
        load_in_8bit=name == "int8",
        load_in_4bit=name != "int8",
        llm_int8_skip_modules=[HEAD, *others] if others else None,  # a list replaces the default, which has the head
        bnb_4bit_compute_dtype=compute_dtype(dtype),
        bnb_4bit_quant_type="fp4" if name == "int8" else name,
        bnb_4bit_use_double_quant=bool(is_double),
    )
    return {SETTINGS: settings.to_dict()}


def compute_dtype(dtype: str) -> str:
    """Return the dtype to which bitsandbytes rounds the numbers of matrices beside tensors of a dtype."""
    return dtype if dtype in COMPUTE_DTYPES else "float32"


def module_name(name: str, head: bool) -> str:
    """Return the name of a tensor's module in transformers."""
    prefix = PREFIX if head and not name.startswith(HEAD_PARTS) else ""
    return prefix + name.removesuffix(".weight")


def _matches(pattern: str, module: str) -> bool:
    """Return whether transformers would skip a module; the pattern ends where a part of the name does."""
    return module.endswith(pattern) or re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", module) is not None
