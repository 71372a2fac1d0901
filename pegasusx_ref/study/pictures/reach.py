"""The reach of one token, layer by layer: the positions that depend on it, derived from the blocks alone."""

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.encoder import layer_blocks


def token_reach(config: PegasusXConfig, num_tokens: int, token: int, through_globals: bool = True) -> np.ndarray:
    """Propagate one token through the layers: within its block, and through the global tokens to all positions.

    Args:
        config: for the layers, their blocks and their staggering.
        num_tokens: T, none of them padding.
        token: position of the token.
        through_globals: False treats the global tokens as constants that do not depend on the text.

    Returns:
        Booleans (layers + 1, T): which positions can depend on the token, before the first layer and after each.

    Raises:
        InputError: there is no such position.
    """
    if not 0 <= token < num_tokens:
        raise InputError(f"token={token} is outside the text: positions lie in [0, {num_tokens})")
    reached = np.zeros((config.encoder_layers + 1, num_tokens), dtype=bool)
    reached[0, token] = True
    for layer in range(config.encoder_layers):
        # Global tokens read the token in the first layer and pass it on to all positions in the next.
        by_globals = through_globals and layer > 0
        for start, stop in layer_blocks(config, num_tokens, layer):
            reached[layer + 1, start:stop] = by_globals or reached[layer, start:stop].any()
    return reached


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """List the (start, stop) of every run of True in a row of booleans."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
