"""Keys and values that grow with the text: room by doubling, and never a change to what someone holds. [spec 10]"""

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
