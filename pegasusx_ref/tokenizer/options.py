"""The options of an encoding, checked: truncation, padding, what is returned."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pegasusx_ref.checkpoint.settings import as_integer
from pegasusx_ref.errors import InputError, shown

NO_LIMIT = 10**30  # what transformers writes for "no maximum length"
MAX_PADDED = 2**24  # tokens
TRUNCATION = (None, True, False, "longest_first", "do_not_truncate")
SIDES = ("right", "left")


@dataclass(frozen=True)
class EncodingOptions:
    """The options of `PegasusTokenizer.__call__`, which describes them.

    Raises:
        InputError: an unknown value, or values that contradict each other.
    """

    max_length: int | None = None
    truncation: bool | str | None = None
    truncation_side: str = "right"
    padding: bool | str | None = None
    padding_side: str = "right"
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = True
    return_tensors: str | None = None
    return_attention_mask: bool | None = None
    return_length: bool = False

    def __post_init__(self) -> None:
        for name in ("max_length", "pad_to_multiple_of"):
            given = getattr(self, name)
            value = as_integer(given)
            if value is None and given is not None:
                raise InputError(f"{name}={shown(given)} must be an integer")
            object.__setattr__(self, name, value)
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length={shown(self.max_length)} leaves no room for </s>: it must be at least 1")
        if self.pad_to_multiple_of is not None and not 1 <= self.pad_to_multiple_of <= MAX_PADDED:
            raise InputError(
                f"pad_to_multiple_of={shown(self.pad_to_multiple_of)} must be an integer from 1 to {MAX_PADDED:,}"
            )
        if not isinstance(self.truncation, bool | str | None) or self.truncation not in TRUNCATION:
            choices = ", ".join(map(repr, TRUNCATION))
            raise InputError(f"truncation={shown(self.truncation)} is unknown: choose one of {choices}")
        for name in ("truncation_side", "padding_side"):
            as_side(name, getattr(self, name))
        for name in ("add_special_tokens", "return_attention_mask", "return_length"):
            as_flag(name, getattr(self, name))
        kind = self.return_tensors
        if kind is not None and (not isinstance(kind, str) or kind not in ("np", "pt")):
            raise InputError(f"return_tensors={shown(kind)} is unknown: choose 'np', or 'pt' where torch is installed")
        if self.limit is not None and self.pads and self.limit % (self.pad_to_multiple_of or 1):
            raise InputError(
                f"max_length={self.limit} is not a multiple of pad_to_multiple_of={self.pad_to_multiple_of}: "
                "longer texts could be neither truncated to the one nor padded to the other"
            )

    @property
    def limit(self) -> int | None:
        """The number of ids to truncate to, None for any number."""
        return None if self.truncation in (False, "do_not_truncate") else self.max_length

    @property
    def pads(self) -> bool:
        """Whether short texts are padded."""
        padding = self.return_tensors is not None if self.padding is None else self.padding
        return not (isinstance(padding, bool | int | str) and padding in (False, "do_not_pad"))

    def padded_length(self, lengths: list[int]) -> int:
        """Return the length to pad texts of these lengths to; 0 for no padding.

        Raises:
            InputError: an unknown padding, or one that needs max_length.
        """
        padding = True if self.padding is None else self.padding
        if not self.pads:
            return 0
        if not isinstance(padding, bool | int | str):
            padding = shown(padding)
        if padding == "max_length" and self.max_length is not None and self.max_length <= MAX_PADDED:
            length = self.max_length
        elif padding in (True, "longest"):
            length = max(lengths)
        else:
            choices = f"True, False, or 'max_length' together with max_length, at most {MAX_PADDED:,}"
            raise InputError(f"padding={shown(padding)}: choose {choices}")
        multiple = self.pad_to_multiple_of or 1
        return -(-length // multiple) * multiple


def as_flag(name: str, value: Any) -> bool:
    """Check a flag; None is False.

    Raises:
        InputError: not a truth value of Python or NumPy.
    """
    if not isinstance(value, bool | int | np.bool | None):
        raise InputError(f"{name}={shown(value)} must be True or False")
    return bool(value)


def as_side(name: str, value: Any) -> str:
    """Check a side.

    Raises:
        InputError: neither "right" nor "left".
    """
    if not isinstance(value, str) or value not in SIDES:
        raise InputError(f"{name}={shown(value)} is unknown: choose 'right' or 'left'")
    return value


def as_limit(name: str, value: Any) -> int:
    """Check a maximum length; transformers writes large ones as floating-point numbers.

    Raises:
        InputError: not a number of at least 1.
    """
    number = int(value) if isinstance(value, float) and 1 <= value < float("inf") else as_integer(value)
    if number is None or number < 1:
        raise InputError(f"{name}={shown(value)} must be a number of at least 1")
    return number
