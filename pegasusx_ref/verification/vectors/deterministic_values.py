"""Pseudorandom numbers that are the same on every machine and in every language: bytes of a hash, as small integers.

A library's generator of normal numbers is not: its stream may change with the version, and logarithms with the machine.
"""

import hashlib

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.weights import parameter_shapes

NUM_SPECIAL_IDS = 2  # padding and end of sequence


def draw(label: str, num_bytes: int) -> bytes:
    """Draw bytes: SHAKE-128 of a label."""
    return hashlib.shake_128(label.encode()).digest(num_bytes)


def draw_weights(config: PegasusXConfig, label: str) -> dict[str, np.ndarray]:
    """Draw every tensor of a model, from numbers that are exact in bfloat16 and float16.

    A signed byte k becomes k / 128, the scale of a LayerNorm 1 + floor(k / 2) / 128: at most eight significant bits. So
    one vector serves implementations in any precision, and none of them rounds a weight.

    Args:
        config: the model's configuration.
        label: the input of the hash, different for each vector.

    Returns:
        float64 tensors by name, without the tied copies.
    """
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        byte = np.frombuffer(draw(f"{label}/{name}", int(np.prod(shape))), dtype=np.int8).astype(np.int64)
        numerator = 128 + byte // 2 if name.endswith("norm.weight") else byte
        tensors[name] = (numerator / 128).reshape(shape)
    return tensors


def draw_ids(config: PegasusXConfig, label: str, shape: tuple[int, int]) -> np.ndarray:
    """Draw token ids in [2, V).

    Args:
        config: gives the vocabulary size.
        label: see `draw_weights`.
        shape: (batch, tokens).

    Returns:
        int64 ids of that shape.
    """
    number = np.frombuffer(draw(label, 2 * shape[0] * shape[1]), dtype="<u2").astype(np.int64)
    return (NUM_SPECIAL_IDS + number % (config.vocab_size - NUM_SPECIAL_IDS)).reshape(shape)
