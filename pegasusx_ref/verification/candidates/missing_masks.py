"""Signs that a candidate ran with a mask that the inputs of the verification do not have. [spec 16]"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.rendering.tables import counted
from pegasusx_ref.verification.candidates.inputs import MASKS
from pegasusx_ref.verification.checking.operations import HIDDEN

# Attention over all keys of the ids, in the first layer: scores and probabilities are looked at
ATTENTIONS = {
    "input_ids": ("decoder.layers.0.encoder_attn", "encoder.layers.0.self_attn.global"),
    "decoder_input_ids": ("decoder.layers.0.self_attn",),
}
SIDES = {"input_ids": "(B, T)", "decoder_input_ids": "(B, L)"}


def missing_masks(tensors: Mapping[str, np.ndarray], inputs: Mapping[str, Any], config: PegasusXConfig) -> list[str]:
    """Ask for masks that the candidate seems to have had; for a candidate that fails.

    Args:
        tensors: the candidate's, by trace-point name.
        inputs: of the verification.
        config: the model's configuration.

    Returns:
        A sentence for each missing mask: the candidate hides the last keys of a text, or the ids end in padding.
    """
    return [
        f"{mask} is missing, but {reason}: if the implementation masks them, add {mask} {SIDES[ids]} to the inputs or "
        "the dump"
        for ids, mask in MASKS.items()
        if inputs.get(mask) is None
        for reason in list(signs(ids, tensors, np.asarray(inputs[ids]), config))[:1]
    ]


def signs(ids: str, tensors: Mapping[str, np.ndarray], array: np.ndarray, config: PegasusXConfig) -> Iterator[str]:
    """List what looks like masked keys at the ends of texts.

    Args:
        ids: the name of the ids.
        tensors: the candidate's.
        array: the ids (B, T).
        config: the model's configuration.
    """
    count = array.shape[1]
    for place in ATTENTIONS[ids]:
        for kind, limit in (("scores", HIDDEN), ("probs", 0.0)):
            name = f"{place}.{kind}"
            found = tensors[name] if name in tensors else np.zeros(0)
            if found.ndim != 4 or len(found) != len(array) or found.shape[3] < count:
                continue
            hidden = np.asarray((found[..., -count:] <= limit).all(axis=(1, 2)))  # the last query of a text sees all
            for text, length in ends(hidden, count):
                last = f"last {length} keys" if length > 1 else "last key"
                yield f"{name} hides the {last} of text {text}"
    padding = np.asarray(array == config.pad_token_id)
    if ids == "decoder_input_ids":
        padding[:, :1] = False  # the start token may have the id of padding
    for text, length in ends(padding, count):
        yield f"{ids} end in {counted(length, 'padding id', separator='')} in text {text}"


def ends(marked: np.ndarray, count: int) -> Iterator[tuple[int, int]]:
    """List the texts whose last tokens are marked, each with their number.

    Args:
        marked: booleans (B, T).
        count: T.
    """
    for text, row in enumerate(marked):
        if length := count if row.all() else int(np.argmin(row[::-1])):
            yield text, length
