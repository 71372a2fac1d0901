"""Passing on tokens while a text is being generated. [spec 12]"""

from typing import Any, Protocol, runtime_checkable

import numpy as np

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.generation.config import GenerationConfig


@runtime_checkable
class Streamer(Protocol):
    """Receives the tokens of each step as they are chosen; transformers' streamers qualify. [spec 12.15]

    Source: HF `BaseStreamer`.
    """

    def put(self, value: np.ndarray) -> Any:
        """Receive the start tokens, then the newest token of every row (B R,)."""

    def end(self) -> Any:
        """Signal the end of the text."""


def check_streamer(streamer: Any, config: GenerationConfig) -> None:
    """Check that a streamer has its two methods, and that tokens are final when they are chosen.

    Raises:
        InputError: a method is missing, or the search has beams.
    """
    if not isinstance(streamer, Streamer):
        raise InputError(f"streamer={shown(streamer)} needs the methods put(ids) and end(), as in transformers")
    if config.num_beams > 1:
        raise InputError(
            f"a streamer needs tokens that are final, but with {config.num_beams} beams all of them may still change: "
            "pass num_beams=1"
        )
