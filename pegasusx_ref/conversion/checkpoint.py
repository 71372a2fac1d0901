"""A checkpoint that is going to be written in another form."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pegasusx_ref.model.config import PegasusXConfig


class Checkpoint(NamedTuple):
    """What a checkpoint is made of.

    Attributes:
        config: of the model.
        tensors: views of its files or quantized matrices, by name without prefix and without tied copies.
        generation: the entries of generation_config.json.
        has_head: whether it is a `PegasusXForConditionalGeneration`.
    """

    config: PegasusXConfig
    tensors: Mapping[str, Any]
    generation: Mapping[str, Any]
    has_head: bool = True
