"""The decoder a token at a time, as a search sees it: over caches that grow, or over caches of fixed size. [spec 10]"""

from collections.abc import Callable

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.cache import FixedRows, Rows, roomy
from pegasusx_ref.decoder import DecoderCache
from pegasusx_ref.tracing import tap

Embed = Callable[[np.ndarray, int], Array]  # ids (B, L), all at one position, to x_BLD
Decode = Callable[[Array, Array | None, DecoderCache | None], tuple[Array, DecoderCache]]  # to logits (B, L, V)
FIRST_ROOM = 64  # tokens of a row that caches of fixed size have room for at first


class GrowingSteps:
    """Decodes the newest token of each row over caches that grow by a row a token. [spec 10.9]

    Args:
        ops: the backend.
        embed: gives scaled embeddings with positions.
        decode: runs decoder and head.
    """

    def __init__(self, ops: Backend, embed: Embed, decode: Decode) -> None:
        self._ops, self._embed, self._decode = ops, embed, decode
        self._cache: DecoderCache | None = None
        self._position = 0

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """See `NextLogits`."""
        x_BLD = self._embed(ids_BL, self._position)
        mask = None if visible is None else self._ops.asarray(visible)
        logits_BLV, self._cache = self._decode(x_BLD, mask, self._cache)
        self._position += 1
        return tap("lm_head", logits_BLV)


class FixedSteps:
    """Decodes the newest token of each row over caches of a size that seldom changes, by a compiled step. [spec 10.10]

    The first step computes the cross-attention's keys and values. All later ones are the same function of the same
    shapes; only where room ends it is doubled, and the step compiled anew.

    Args:
        ops: the backend.
        embed: gives scaled embeddings with positions.
        decode: runs decoder and head.
        most_tokens: that a row may have; more room is never made.
        compiled: False takes every step anew: a replayed one calls no listener.
    """

    def __init__(self, ops: Backend, embed: Embed, decode: Decode, most_tokens: int, compiled: bool = True) -> None:
        self._ops, self._embed, self._decode = ops, embed, decode
        self._most_tokens, self._compiled = most_tokens, compiled
        self._cache: DecoderCache | None = None
        self._step: Callable[[Array, Array, Array], Array] | None = None
        self._position = self._room = 0  # in tokens of a row

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """See `NextLogits`."""
        B, L = ids_BL.shape
        x_BLD = self._embed(ids_BL, self._position)
        if self._cache is None:
            mask = None if visible is None else self._ops.asarray(visible)
            logits_BLV, self._cache = self._decode(x_BLD, mask, None)
        else:
            if self._step is None or self._position == self._room:
                self._step = self._new_step(self._cache, L)
            first, last = self._position * L, (self._position + 1) * L
            seen = np.zeros((B, L, self._room * L), dtype=bool)
            seen[:, :, :last] = True if visible is None else visible
            logits_BLV = self._step(x_BLD, self._ops.asarray(np.arange(first, last)), self._ops.asarray(seen))
        self._position += 1
        return tap("lm_head", logits_BLV)

    def _new_step(self, filled: DecoderCache, L: int) -> Callable[[Array, Array, Array], Array]:
        """Make room for more tokens, and a step that writes into it."""
        self._room = min(max(FIRST_ROOM, 2 * self._room), self._most_tokens)

        def roomier(rows: Rows | FixedRows) -> Rows:
            return Rows.of(roomy(self._ops, rows.array, self._room * L))

        layers = tuple(c._replace(self_k=roomier(c.self_k), self_v=roomier(c.self_v)) for c in filled.layers)
        self._cache = DecoderCache(layers, filled.length)

        def step(x_BLD: Array, slots_L: Array, seen: Array) -> Array:
            def at_slots(rows: Rows | FixedRows) -> FixedRows:
                return FixedRows(rows.array, slots_L)

            here = tuple(c._replace(self_k=at_slots(c.self_k), self_v=at_slots(c.self_v)) for c in layers)
            return self._decode(x_BLD, seen, DecoderCache(here, filled.length))[0]

        return self._ops.compile(step) if self._compiled else step
