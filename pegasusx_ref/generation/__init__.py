"""Decoding: from the scores of the next token to a text. [spec 12]"""

from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.generation.greedy import greedy_search

__all__ = ["GenerationConfig", "greedy_search"]
