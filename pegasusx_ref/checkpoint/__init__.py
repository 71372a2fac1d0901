"""Weight files: which ones a model folder holds, and how each kind is read and written. [spec 14]"""

from pegasusx_ref.checkpoint.folder import PREFIX, read_weights, write_weights

__all__ = ["PREFIX", "read_weights", "write_weights"]
