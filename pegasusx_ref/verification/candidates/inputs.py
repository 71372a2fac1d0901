"""The inputs of a run, and the sizes that they and the configuration give a trace point. [spec 16]"""

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import is_staggered, layer_blocks
from pegasusx_ref.model.inputs import MAX_TOKENS
from pegasusx_ref.model.inputs import label_smoothing as check_label_smoothing
from pegasusx_ref.model.inputs import labels as check_labels
from pegasusx_ref.tracing.trace_points import numbers_in

MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
INPUTS = tuple(name for pair in MASKS.items() for name in pair)
Inputs = Mapping[str, Any]  # arrays by the names of INPUTS
LETTERS = "BTLDHFGKSNVM"
FIRST_WORD = 106  # the first id that is no special token
OF_INPUTS = {"B": ("input_ids", 0), "T": ("input_ids", 1), "L": ("decoder_input_ids", 1)}  # name and axis


def real_tokens(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Return which source tokens (B, T) and target tokens (B, L) are real; all of them where there is no mask."""
    source, target = (
        np.ones(np.shape(inputs[ids]), dtype=bool) if inputs.get(mask) is None else np.asarray(inputs[mask], dtype=bool)
        for ids, mask in MASKS.items()
    )
    return source, target


class Loss(NamedTuple):
    """What a loss depends on besides the logits.

    Attributes:
        labels: (B, L), -100 where no loss is taken.
        label_smoothing: see `cross_entropy`.
    """

    labels: np.ndarray
    label_smoothing: float


def check_loss(inputs: Inputs, vocab_size: int) -> Loss:
    """Check what the loss of a run depends on.

    Raises:
        InputError: there are no labels, or they do not fit the target.
    """
    if not isinstance(inputs, Mapping) or inputs.get("labels") is None:
        raise InputError("labels are missing: gradients are those of a loss, so inputs need labels (B, L)")
    labels_BL = check_labels(inputs["labels"], vocab_size)
    target = np.shape(inputs.get("decoder_input_ids", labels_BL))
    if labels_BL.shape != target:
        raise InputError(f"labels have shape {labels_BL.shape}, but the target has {target}")
    return Loss(labels_BL, check_label_smoothing(inputs.get("label_smoothing", 0.0)))


def random_ids(rng: np.random.Generator, vocab_size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw ids above the special tokens."""
    return rng.integers(min(FIRST_WORD, vocab_size - 1), vocab_size, shape)


class Dimensions:
    """The sizes of a trace point's dimensions, by the letters of spec/01-notation.md.

    Args:
        name: the trace point's name, with numbers; H, F and M are those of its side, N and S those of its blocks.
        config: the model's configuration, or None if it is not known.
        shape_of: returns the shape of input_ids or decoder_input_ids, or None if it is not known.
    """

    def __init__(
        self,
        name: str,
        config: PegasusXConfig | None,
        shape_of: Callable[[str], tuple[int, ...] | None],
    ) -> None:
        self.name, self._config, self._shape_of = name, config, shape_of

    def size(self, letter: str) -> int:
        """Return the size of a dimension.

        Raises:
            InputError: no such dimension here, or its size is not known.
        """
        if letter not in tuple(LETTERS):
            raise InputError(f"{shown(letter)} is not a dimension: use numbers, -1, or {', '.join(LETTERS)}")
        if letter in OF_INPUTS:
            name, axis = OF_INPUTS[letter]
            shape = None if self.name in INPUTS else self._shape_of(name)
            if shape is None:
                raise InputError(f"{letter} is not known: it needs {name} in the dump, or inputs=…")
            if len(shape) != 2 or math.prod(shape) > MAX_TOKENS:
                raise InputError(f"{name} has shape {shape}: expected (batch, tokens), at most {MAX_TOKENS:,} in all")
            return shape[axis]
        side, config = self.name.split(".")[0], self.config
        if letter in "HFM" and side not in ("encoder", "decoder"):
            raise InputError(f"{letter} is not a dimension of {self.name}")
        match letter:
            case "H":
                return int(getattr(config, f"{side}_attention_heads"))
            case "F":
                return config.d_model // self.size("H")
            case "M":
                return int(getattr(config, f"{side}_ffn_dim"))
            case "N":
                return len(self.blocks)
            case "S":
                start, stop = self.block
                return stop - start
            case _:
                sizes = {"D": config.d_model, "G": config.num_global_tokens, "K": config.block_size}
                return (sizes | {"V": config.vocab_size})[letter]

    @property
    def exists(self) -> bool:
        """Whether the model has a layer of the trace point's number."""
        return self._numbers(1)[0] < self.config.encoder_layers

    @property
    def config(self) -> PegasusXConfig:
        """The model's configuration.

        Raises:
            InputError: it is not known.
        """
        if self._config is None:
            raise InputError("sizes of the model are not known: pass config=model.config")
        return self._config

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """The blocks of the encoder layer, as (start, stop) over the tokens."""
        return layer_blocks(self.config, self.size("T"), self._numbers(1)[0])

    @property
    def block(self) -> tuple[int, int]:
        """The trace point's own block, as (start, stop) over the tokens."""
        number = self._numbers(2)[1]
        if number >= len(self.blocks):
            raise InputError(f"{self.name} does not exist: the layer has {len(self.blocks)} blocks")
        return self.blocks[number]

    @property
    def padding(self) -> int:
        """The rows that implementations with padded blocks put in front of the tokens: K/2 in a staggered layer."""
        is_inside = self.name.startswith("encoder.layers.")
        return self.size("K") // 2 if is_inside and is_staggered(self.config, self._numbers(1)[0]) else 0

    def _numbers(self, count: int) -> tuple[int, ...]:
        numbers = numbers_in(self.name)
        if not self.name.startswith("encoder.layers.") or len(numbers) < count:
            raise InputError(f"{self.name} is not a tensor of a block" if count == 2 else f"{self.name} has no blocks")
        return numbers
