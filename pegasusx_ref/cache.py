"""Keys and values of the text so far: rows that grow and never change, or room of a fixed size. [spec 10]"""

from typing import NamedTuple

from pegasusx_ref.backend import Array, Backend


class Room:
    """An array with more rows than are filled; whoever holds the newest filled row may fill on behind it."""

    def __init__(self, array: Array, filled: int) -> None:
        self.array = array
        self.filled = filled


class Rows(NamedTuple):
    """The first `length` rows of a room: keys or values of the target tokens so far. [spec 10.1]

    Rows are never written into. Appending gives new rows and leaves the old ones good for another try: where these are
    the newest rows of their room the new ones go behind them in place, else everything moves to a new room.
    """

    room: Room
    length: int

    @classmethod
    def of(cls, array: Array) -> "Rows":
        """Take an array (B, H, L, F) as it is."""
        return cls(Room(array, array.shape[2]), array.shape[2])

    @property
    def array(self) -> Array:
        """The rows (B, H, length, F), a view."""
        return self.room.array[:, :, : self.length]

    def append(self, ops: Backend, new: Array) -> "Rows":
        """Put rows behind these. [spec 10.7]

        Args:
            ops: the backend.
            new: keys or values of the new tokens (B, H, L, F).

        Returns:
            The rows of all tokens. A row is copied once when it comes, and on average once more when room is doubled.
        """
        B, H, L, F = new.shape
        length = self.length + L
        room = self.room
        if room.filled != self.length or room.array.shape[2] < length:
            room = Room(ops.empty((B, H, max(2 * self.length, length), F)), self.length)
            room.array[:, :, : self.length] = self.array
        room.array[:, :, self.length : length] = new
        room.filled = length
        return Rows(room, length)


class FixedRows(NamedTuple):
    """All rows of a room that never grows, filled or not: which of them count is up to the mask.

    Here appending writes in place, at rows that are themselves data on the device. So a step that is recorded once can
    be replayed for every later token.
    """

    array: Array  # (B, H, X, F)
    slots_L: Array  # where the next tokens' rows go

    def append(self, ops: Backend, new: Array) -> "FixedRows":
        """Write the rows of the next tokens (B, H, L, F) where the slots say."""
        self.array[:, :, self.slots_L] = new
        return self


def roomy(ops: Backend, rows_BHLF: Array, size: int) -> Array:
    """Copy rows to the front of a larger room.

    The rest is 0: masked values are multiplied with 0, which does not make NaN harmless.

    Args:
        ops: the backend.
        rows_BHLF: what is filled in so far (B, H, L, F).
        size: X, at least L.

    Returns:
        The room (B, H, X, F).
    """
    B, H, L, F = rows_BHLF.shape
    room_BHXF = ops.empty((B, H, size, F))
    room_BHXF[:, :, :L] = rows_BHLF
    room_BHXF[:, :, L:] = 0
    return room_BHXF
