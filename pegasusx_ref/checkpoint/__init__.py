"""A checkpoint folder: its weight files in each format, and its settings files. [spec 14]"""

from pegasusx_ref.checkpoint.folder import PREFIX, read_tensors, write_weights

__all__ = ["PREFIX", "read_tensors", "write_weights"]
