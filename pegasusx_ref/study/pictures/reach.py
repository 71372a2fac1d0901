"""How far what one token says has got after each layer of the encoder, worked out from the blocks alone."""

from typing import NamedTuple

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks


class Reached(NamedTuple):
    """Which hidden states can depend on one token.

    Attributes:
        tokens: booleans (layers + 1, T), a row before the first layer and one after each.
        global_tokens: booleans (layers + 1,): the global tokens are reached all at once.
    """

    tokens: np.ndarray
    global_tokens: np.ndarray


def reached_from(config: PegasusXConfig, num_tokens: int, token: int, through_globals: bool = True) -> Reached:
    """Follow one token through the layers: a block passes it on to all its tokens, the global tokens to everything.

    Args:
        config: for the layers, their blocks and their staggering.
        num_tokens: T, none of them padding.
        token: the position that everything starts from.
        through_globals: false leaves the global tokens out, as if they were the same whatever the text says.

    Raises:
        InputError: there is no such position.
    """
    if not 0 <= token < num_tokens:
        raise InputError(f"token={token} is outside the text: positions lie in [0, {num_tokens})")
    tokens = np.zeros((config.encoder_layers + 1, num_tokens), dtype=bool)
    global_tokens = np.zeros(config.encoder_layers + 1, dtype=bool)
    tokens[0, token] = True
    for layer in range(config.encoder_layers):
        for start, stop in layer_blocks(config, num_tokens, layer):
            tokens[layer + 1, start:stop] = tokens[layer, start:stop].any() or global_tokens[layer]
        # Both streams read what the layer was given: what a global token hears now it tells one layer later.
        global_tokens[layer + 1] = through_globals
    return Reached(tokens, global_tokens)


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """List the (start, stop) of every stretch of True in a row of booleans."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
