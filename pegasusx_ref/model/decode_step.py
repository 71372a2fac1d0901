"""One step of decoding, as a search calls it: newest ids in, logits of the next token out. [spec 10]"""

from collections.abc import Callable
from functools import partial

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.decoder import decoder
from pegasusx_ref.model.encoder import Encoded
from pegasusx_ref.model.kv_cache import DecoderCache, DynamicKV, StaticKV, padded
from pegasusx_ref.model.layers import embed, lm_head
from pegasusx_ref.model.weights import Weights
from pegasusx_ref.tracing import tap

FIRST_CAPACITY = 64  # initial capacity of a static cache, in tokens per row


class DynamicDecodeStep:
    """Decodes the newest token of each row over a cache that grows by one token a step. [spec 10.9]

    Args:
        ops: the backend.
        weights: of the whole model.
        config: the model's configuration.
        source: the encoder's output.
    """

    def __init__(self, ops: Backend, weights: Weights, config: PegasusXConfig, source: Encoded) -> None:
        self._ops, self._weights, self._config, self._source = ops, weights, config, source
        self._cache: DecoderCache | None = None
        self._position = 0

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """Compute the next logits; see `NextLogits`."""
        B, L = ids_BL.shape
        # The L rows of a source are at the same position: each is embedded as a text of its own.
        ids = self._ops.asarray(ids_BL.reshape(B * L, 1))
        x_BLD = embed(self._ops, self._weights, self._config, "decoder", ids, self._position).reshape(B, L, -1)
        logits_BLV = self._logits(x_BLD, visible)
        self._position += 1
        return tap("lm_head", logits_BLV)

    def keep(self, sources: np.ndarray) -> None:
        """Go on with some of the sources only, one layer after another: no second copy of all caches is held.

        Args:
            sources: their places in the batch, ascending.
        """
        places = self._ops.asarray(sources)
        self._source = self._source.keep(places)
        if self._cache is not None:
            layers, length = list(self._cache.layers), self._cache.length
            self._cache = None
            for i in range(len(layers)):
                layers[i] = layers[i].keep(places)
            self._cache = DecoderCache(tuple(layers), length)

    def _logits(self, x_BLD: Array, visible: np.ndarray | None) -> Array:
        mask = None if visible is None else self._ops.asarray(visible)
        logits_BLV, self._cache = decode(self._ops, self._weights, self._config, self._source, x_BLD, mask, self._cache)
        return logits_BLV


def decode(
    ops: Backend,
    weights: Weights,
    config: PegasusXConfig,
    source: Encoded,
    x_BLD: Array,
    visible: Array | None,
    past: DecoderCache | None,
) -> tuple[Array, DecoderCache]:
    """Compute the logits (B, L, V) of new target tokens, and the cache with them; arguments as for `decoder`."""
    hidden_BLD, cache = decoder(
        ops, weights.at("decoder"), config, x_BLD, visible, source.tokens_BTD, source.mask_BT, past
    )
    return lm_head(ops, weights, hidden_BLD), cache


class StaticDecodeStep(DynamicDecodeStep):
    """Decodes over a static cache, by a step that the backend compiles. [spec 10.10]

    The first call computes the cross-attention's keys and values. All later calls are the same function of the same
    shapes, until the cache is full: then its capacity doubles and the step is compiled again.

    Args:
        ops: the backend.
        weights: of the whole model.
        config: the model's configuration.
        source: the encoder's output.
        max_tokens: maximum number of tokens per row, the upper limit of the capacity.
        compiled: False to run the step uncompiled, needed with a listener: a replayed step calls none.
    """

    def __init__(
        self,
        ops: Backend,
        weights: Weights,
        config: PegasusXConfig,
        source: Encoded,
        max_tokens: int,
        compiled: bool = True,
    ) -> None:
        super().__init__(ops, weights, config, source)
        self._max_tokens, self._compiled = max_tokens, compiled
        self._step: Callable[[Array, Array, Array], Array] | None = None
        self._capacity = 0  # tokens a row

    def keep(self, sources: np.ndarray) -> None:
        """Go on with some of the sources only, by a new step over smaller caches."""
        self._step = None
        super().keep(sources)

    def _logits(self, x_BLD: Array, visible: np.ndarray | None) -> Array:
        if self._cache is None:
            return super()._logits(x_BLD, visible)
        B, L = x_BLD.shape[:2]
        if self._position >= self._capacity:
            self._step = None  # it holds the old caches
            self._cache = self._enlarged(self._cache, L)
        if self._step is None:
            self._step = self._new_step(self._cache)
        first, last = self._position * L, (self._position + 1) * L
        filled = np.zeros((B, L, self._capacity * L), dtype=bool)
        filled[:, :, :last] = True if visible is None else visible
        return self._step(x_BLD, self._ops.asarray(np.arange(first, last)), self._ops.asarray(filled))

    def _enlarged(self, cache: DecoderCache, L: int) -> DecoderCache:
        """Copy the cache to a larger one."""
        self._capacity = min(max(FIRST_CAPACITY, 2 * self._capacity), self._max_tokens)

        def larger(kv: DynamicKV | StaticKV) -> DynamicKV:
            return DynamicKV.of(padded(self._ops, kv.array, self._capacity * L))

        layers = tuple(c._replace(self_k=larger(c.self_k), self_v=larger(c.self_v)) for c in cache.layers)
        return DecoderCache(layers, cache.length)

    def _new_step(self, cache: DecoderCache) -> Callable[[Array, Array, Array], Array]:
        """Make a step that writes into a cache.

        It does not refer to this object, which refers to it: caches and graphs are freed without the garbage collector.
        """
        run = partial(decode, self._ops, self._weights, self._config, self._source)

        def step(x_BLD: Array, slots_L: Array, visible: Array) -> Array:
            def at_slots(kv: DynamicKV | StaticKV) -> StaticKV:
                return StaticKV(kv.array, slots_L)

            static = tuple(c._replace(self_k=at_slots(c.self_k), self_v=at_slots(c.self_v)) for c in cache.layers)
            return run(x_BLD, visible, DecoderCache(static, cache.length))[0]

        return self._ops.compile(step) if self._compiled else step
