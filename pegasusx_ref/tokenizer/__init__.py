"""Text to token ids and back. [spec 2]"""

from pegasusx_ref.tokenizer.batching import BatchEncoding
from pegasusx_ref.tokenizer.tokenizer import PegasusTokenizer

__all__ = ["BatchEncoding", "PegasusTokenizer"]
