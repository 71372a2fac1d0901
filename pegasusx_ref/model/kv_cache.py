"""Keys and values of the decoded tokens, in caches that grow (dynamic) or have a fixed size (static). [spec 10]"""

from threading import Lock
from typing import NamedTuple

from pegasusx_ref.backend import Array, Backend

_claiming = Lock()  # one for all buffers: an object that holds a lock can be neither copied nor pickled


class AppendOnlyBuffer:
    """An array with capacity for more tokens than are filled; only the holder of its last token may append in place."""

    def __init__(self, array: Array, filled: int) -> None:
        self.array = array  # (B, H, capacity, F)
        self.filled = filled

    def claim(self, start: int, stop: int) -> bool:
        """Reserve the slots [start, stop) for the caller; return False if they are taken or beyond the capacity."""
        with _claiming:
            is_free = self.filled == start and stop <= self.array.shape[2]
            if is_free:
                self.filled = stop
            return is_free


class DynamicKV(NamedTuple):
    """Keys, or values, of the target tokens so far: the first `length` tokens of an append-only buffer. [spec 10.1]

    Stored tokens are never overwritten, so an older `DynamicKV` stays valid and can be continued a second time, also by
    another thread. If it holds the buffer's last token, new tokens are appended in place; otherwise they are copied to
    a new buffer.
    """

    buffer: AppendOnlyBuffer
    length: int

    @classmethod
    def of(cls, array: Array) -> "DynamicKV":
        """Start from an array (B, H, L, F), without a copy."""
        return cls(AppendOnlyBuffer(array, array.shape[2]), array.shape[2])

    @property
    def array(self) -> Array:
        """The keys or values (B, H, length, F), a view."""
        return self.buffer.array[:, :, : self.length]

    def append(self, ops: Backend, new: Array) -> "DynamicKV":
        """Append the keys or values of new tokens. [spec 10.7]

        Args:
            ops: the backend.
            new: keys or values of the new tokens (B, H, L, F).

        Returns:
            Keys or values of all tokens. The capacity doubles when it is exhausted, so each token is written once
            and copied about once more on average.
        """
        B, H, L, F = new.shape
        length = self.length + L
        buffer = self.buffer
        if not buffer.claim(self.length, length):
            buffer = AppendOnlyBuffer(ops.empty((B, H, max(2 * self.length, length), F)), length)
            buffer.array[:, :, : self.length] = self.array
        buffer.array[:, :, self.length : length] = new
        return DynamicKV(buffer, length)


class StaticKV(NamedTuple):
    """Keys, or values, in an array of a fixed size; the attention mask hides the slots that are not filled yet.

    `append` writes in place, at slots that are themselves data on the device, so a step that was recorded once can be
    replayed for every later token.
    """

    array: Array  # (B, H, X, F)
    slots_L: Array  # where the next tokens are written

    def append(self, ops: Backend, new: Array) -> "StaticKV":
        """Write the keys or values of the next tokens (B, H, L, F) into their slots."""
        self.array[:, :, self.slots_L] = new
        return self


class LayerCache(NamedTuple):
    """Keys and values of one decoder layer. [spec 10.8]"""

    self_k: DynamicKV | StaticKV  # of the target tokens so far
    self_v: DynamicKV | StaticKV
    cross_k_BHTF: Array  # computed once per source
    cross_v_BHTF: Array

    def keep(self, places: Array) -> "LayerCache":
        """Copy the caches of some sources, given by their places in the batch."""
        own_k, own_v = (DynamicKV.of(kv.array[places]) for kv in (self.self_k, self.self_v))
        return LayerCache(own_k, own_v, self.cross_k_BHTF[places], self.cross_v_BHTF[places])


class DecoderCache(NamedTuple):
    """The caches of all decoder layers: the content of `past_key_values`. [spec 10.2]"""

    layers: tuple[LayerCache, ...]
    length: int  # target tokens in the cache; kept here because a model may have no decoder layer


def padded(ops: Backend, x_BHLF: Array, capacity: int) -> Array:
    """Copy keys or values into a larger array whose remaining slots are 0.

    An unfilled slot is masked, so its weight is 0, but 0 times NaN is NaN: uninitialized memory would not do.

    Args:
        ops: the backend.
        x_BHLF: keys or values (B, H, L, F).
        capacity: X, at least L.

    Returns:
        The larger array (B, H, X, F).
    """
    B, H, L, F = x_BHLF.shape
    padded_BHXF = ops.empty((B, H, capacity, F))
    padded_BHXF[:, :, :L] = x_BHLF
    padded_BHXF[:, :, L:] = 0
    return padded_BHXF
