"""Decoding: greedy search, sampling and beam search over any function that gives the next logits. [spec 12]"""

from pegasusx_ref.generation.callbacks import Callbacks
from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.history import NextLogits
from pegasusx_ref.generation.search import search
from pegasusx_ref.generation.search_record import SearchRecord
from pegasusx_ref.generation.settings import settings_of_call
from pegasusx_ref.generation.streamer import Streamer, check_streamer

__all__ = [
    "Callbacks",
    "GenerationConfig",
    "NextLogits",
    "SearchRecord",
    "Streamer",
    "check_streamer",
    "search",
    "settings_of_call",
]
