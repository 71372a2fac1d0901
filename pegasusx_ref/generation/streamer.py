"""Handing tokens out while a text is being written. [spec 12]"""

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Streamer(Protocol):
    """Takes the tokens of each step as they are chosen; the streamers of transformers do. [spec 12.15]

    Source: HF `BaseStreamer`.
    """

    def put(self, value: np.ndarray) -> Any:
        """Take the start token, then the newest token, of every row (B R,)."""

    def end(self) -> Any:
        """Hear that no more tokens come."""
