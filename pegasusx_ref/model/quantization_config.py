"""The settings of quantization, as transformers has them."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pegasusx_ref.backend.registry import dtype_name
from pegasusx_ref.checkpoint.bitsandbytes import METHOD
from pegasusx_ref.errors import InputError, InputTypeError, shown

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")  # of bitsandbytes
STORAGE_DTYPES = ("uint8", "int8", "float16", "bfloat16", "float32", "float64")
THRESHOLD = 6.0


@dataclass(frozen=True)
class BitsAndBytesConfig:
    """The settings of transformers' class of that name, for `quantization_config`.

    Args:
        load_in_8bit: kind "int8".
        load_in_4bit: the kind of `bnb_4bit_quant_type`.
        llm_int8_threshold: without effect, because activations are not quantized here; another one than 6 is a warning.
        llm_int8_skip_modules: linear layers that are not quantized: the begins or ends of their names, or regular
            expressions, as transformers matches them with "model.encoder.layers.0.fc1".
        llm_int8_enable_fp32_cpu_offload: without effect, because a model is on one device.
        llm_int8_has_fp16_weight: only False.
        bnb_4bit_compute_dtype: what the whole model computes in where no `dtype` is given.
        bnb_4bit_quant_type: "fp4" or "nf4".
        bnb_4bit_use_double_quant: whether the scales are quantized too: kind "nf4-double" or "fp4-double".
        bnb_4bit_quant_storage: without effect: codes are stored as bytes.

    Raises:
        InputError: a value that transformers does not have, or that is not supported.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = THRESHOLD
    llm_int8_skip_modules: Sequence[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: Any = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: Any = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(getattr(BitsAndBytesConfig, name), bool) and not isinstance(value, bool):
                raise InputError(f"{name}={shown(value)} must be True or False")
        if self.load_in_8bit and self.load_in_4bit:
            raise InputError("load_in_8bit and load_in_4bit are both True: choose one")
        if self.llm_int8_has_fp16_weight:
            raise InputError("llm_int8_has_fp16_weight=True is for training: omit it; the weights are stored in int8")
        if self.bnb_4bit_quant_type not in ("nf4", "fp4"):
            raise InputError(f"bnb_4bit_quant_type={shown(self.bnb_4bit_quant_type)} must be 'nf4' or 'fp4'")
        for name, allowed in (
            ("bnb_4bit_compute_dtype", (*COMPUTE_DTYPES, "float64")),
            ("bnb_4bit_quant_storage", STORAGE_DTYPES),
        ):
            value = getattr(self, name)
            if value is not None and dtype_name(value) not in allowed:
                raise InputError(f"{name}={shown(value)} must be one of {', '.join(allowed)}")
        if not isinstance(self.llm_int8_threshold, int | float):
            raise InputError(f"llm_int8_threshold={shown(self.llm_int8_threshold)} must be a number")
        _patterns(self.llm_int8_skip_modules)
        if self.load_in_8bit and self.llm_int8_threshold != THRESHOLD:
            warnings.warn(
                f"llm_int8_threshold={self.llm_int8_threshold:g} has no effect: activations are not quantized here",
                stacklevel=3,
            )

    @classmethod
    def from_dict(cls, settings: Any) -> "BitsAndBytesConfig":
        """Read the settings of a dictionary, as config.json has them, or of transformers' object.

        Args:
            settings: a dictionary, an object of this class, or one of transformers.

        Raises:
            InputError: the settings of another method, or an unknown one.
            InputTypeError: something else.
        """
        if isinstance(settings, cls):
            return settings
        if not isinstance(settings, Mapping) and hasattr(settings, "to_dict"):
            settings = settings.to_dict()
        if not isinstance(settings, Mapping):
            raise InputTypeError(
                f"quantization_config={shown(settings)} must be a BitsAndBytesConfig or its dictionary"
            )
        entries = {str(name): value for name, value in settings.items()}
        method = entries.pop("quant_method", METHOD)
        if method != METHOD:  # an enumeration of strings in transformers
            raise InputError(f"quant_method={shown(method)} is not supported: pass a BitsAndBytesConfig")
        entries = {name: value for name, value in entries.items() if not name.startswith("_load_in_")}
        if others := entries.keys() - cls.__dataclass_fields__.keys():
            known = ", ".join(cls.__dataclass_fields__)
            raise InputError(f"quantization_config has no setting {shown(min(others))}: choose from {known}")
        return cls(**entries)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries that config.json has under quantization_config."""
        entries = asdict(self)
        entries["bnb_4bit_compute_dtype"] = dtype_name(self.bnb_4bit_compute_dtype or "float32")
        entries["bnb_4bit_quant_storage"] = dtype_name(self.bnb_4bit_quant_storage or "uint8")
        return entries | {"quant_method": METHOD}

    @property
    def kind(self) -> str:
        """The kind of quantization, one of `KINDS`.

        Raises:
            InputError: none is chosen.
        """
        if not self.load_in_8bit and not self.load_in_4bit:
            raise InputError("quantization_config has neither load_in_4bit=True nor load_in_8bit=True: choose one")
        double = "-double" if self.bnb_4bit_use_double_quant else ""
        return "int8" if self.load_in_8bit else self.bnb_4bit_quant_type + double


def _patterns(skipped: Iterable[str] | None) -> None:
    if skipped is not None and not (isinstance(skipped, list | tuple) and all(isinstance(s, str) for s in skipped)):
        raise InputError(f"llm_int8_skip_modules={shown(skipped)} must be a list of names")
    for pattern in skipped or ():
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"llm_int8_skip_modules has {shown(pattern)}, no regular expression: {error}") from None
