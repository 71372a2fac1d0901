"""A checkpoint folder: its weight files in each format, and its settings files. [spec 14]"""

from pegasusx_ref.checkpoint.folder import IDENTITY, read_tensors
from pegasusx_ref.checkpoint.saving import write_checkpoint
from pegasusx_ref.checkpoint.tensor_names import PREFIX

__all__ = ["IDENTITY", "PREFIX", "read_tensors", "write_checkpoint"]
