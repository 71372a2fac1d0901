"""Decode steps whose caches are wrong in the ways in which people's are. [spec 16]"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pegasusx_ref.backend import Array
from pegasusx_ref.generation import NextLogits
from pegasusx_ref.generation.history import own_history, visible_history
from pegasusx_ref.model.decode_step import DynamicDecodeStep
from pegasusx_ref.model.encoder import Encoded
from pegasusx_ref.model.kv_cache import DecoderCache, DynamicKV, StaticKV
from pegasusx_ref.verification.generation.reference import Reference

MAX_WINDOWS = 64


class CacheFault(NamedTuple):
    """A fault of a cache.

    Attributes:
        reason: the fault, in words.
        see: from which tokens a row sees (B, L, n + 1, L), by step and row, to those that it sees with the fault.
        position: from the step to the position of its token.
        empty_slots: from the number of tokens to the number of unfilled slots of zeros that are not masked.
        source: changes the encoder's output.
    """

    reason: str
    see: Callable[[np.ndarray], np.ndarray] | None = None
    position: Callable[[int], int] | None = None
    empty_slots: Callable[[int], int] | None = None
    source: Callable[[Encoded], Encoded] | None = None

    def step(self, reference: Reference) -> NextLogits:
        """Return the decode step with this fault."""
        return FaultyDecodeStep(reference, self)


class FaultyDecodeStep(DynamicDecodeStep):
    """A decode step with a fault of its cache.

    Args:
        reference: the model and its sources.
        fault: what is wrong.
    """

    def __init__(self, reference: Reference, fault: CacheFault) -> None:
        model, source = reference.model, reference.encoded
        changed = source if fault.source is None else fault.source(source)
        super().__init__(model.ops, model.weights, model.config, changed)
        self._fault, self._steps = fault, 0

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """Compute the next logits; see `NextLogits`."""
        (B, L), n = ids_BL.shape, self._steps
        seen = np.ones((B, L, n + 1, L), dtype=bool) if visible is None else visible.reshape(B, L, n + 1, L).copy()
        if self._fault.see is not None:
            seen = self._fault.see(seen)
        if self._fault.position is not None:
            self._position = self._fault.position(n)
        visible = seen.reshape(B, L, -1)
        if (empty := self._fault.empty_slots) is not None:
            if self._cache is None:
                super().__call__(ids_BL, visible)  # for the keys of the cross-attention
                assert self._cache is not None
                self._cache, self._position = only_zeros(self._cache, empty(1)), 0
            slots = np.arange(empty(1)) < empty(n + 1)
            visible = np.concatenate([np.broadcast_to(slots, (B, L, len(slots))), visible], axis=2)
        self._steps += 1
        return super().__call__(ids_BL, visible)


def only_zeros(cache: DecoderCache, count: int) -> DecoderCache:
    """Replace the keys and values of the target by zeros."""

    def zeros(kv: DynamicKV | StaticKV) -> DynamicKV:
        B, H, _, F = kv.array.shape
        return DynamicKV.of(np.zeros((B, H, count, F)))

    layers = (layer._replace(self_k=zeros(layer.self_k), self_v=zeros(layer.self_v)) for layer in cache.layers)
    return DecoderCache(tuple(layers), count)


def only_steps(choose: Callable[[int], list[int] | slice]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change that lets rows see only some steps, and their own newest token."""

    def see(seen: np.ndarray) -> np.ndarray:
        kept = np.zeros_like(seen)
        n = seen.shape[2]
        kept[:, :, choose(n)] = seen[:, :, choose(n)]
        return kept

    return see


def not_reordered(seen: np.ndarray) -> np.ndarray:
    """Let each row see what its place in the batch held, whichever beam that was."""
    B, L, n, _ = seen.shape
    own = visible_history(own_history(B, L, n - 1))
    return seen if own is None else own.reshape(seen.shape)


def cache_faults(reference: Reference, beams: int, max_length: int, first_wrong: int) -> Iterator[CacheFault]:
    """List the faults of a cache that may explain a candidate's texts.

    Args:
        reference: the model and its sources.
        beams: number of beams.
        max_length: the longest text, with the start token.
        first_wrong: the first step whose choice is wrong: there the cache must have lost a token, or more.
    """
    if beams > 1:
        yield CacheFault("the cache is not reordered with the beams", see=not_reordered)
    yield CacheFault(
        "the cache is stale: each step sees the keys before its own token only", see=only_steps(before_own)
    )
    yield CacheFault("the cache is stale: it keeps the first token alone", see=only_steps(lambda n: [0, n - 1]))
    yield CacheFault("the cache is shifted: its first token is lost", see=only_steps(lambda n: slice(min(1, n - 1), n)))
    yield CacheFault("positions are not advanced with the cache: each token has position 0", position=lambda n: 0)
    yield CacheFault("positions are one too early with the cache", position=lambda n: max(n - 1, 0))
    yield CacheFault("positions are one too late with the cache", position=lambda n: n + min(n, 1))
    yield CacheFault("positions of the target start at 1", position=lambda n: n + 1)
    for window in range(first_wrong, 0, -1)[:MAX_WINDOWS]:
        reason = f"the cache is truncated: only the last {window} tokens are kept"
        yield CacheFault(reason, see=only_steps(lambda n, window=window: slice(max(n - window, 0), n)))  # type: ignore[misc]
    for capacity in (max_length - 1, max_length):
        reason = f"unfilled slots of a cache of {capacity} tokens are not masked"
        yield CacheFault(reason, empty_slots=lambda n, capacity=capacity: max(capacity - n, 0))  # type: ignore[misc]
    if len(reference.source_ids) > 1:
        yield CacheFault(
            "cross-attention reads the cache of another source",
            source=lambda x: Encoded(x.tokens_BTD[::-1], None, None if x.mask_BT is None else x.mask_BT[::-1]),
        )
    if reference.mask_BT is not None:
        yield CacheFault("cross-attention sees the padding of the source", source=lambda x: x._replace(mask_BT=None))


def before_own(n: int) -> slice:
    """Choose the steps before the newest; the first step sees itself."""
    return slice(0, max(n - 1, 1))
