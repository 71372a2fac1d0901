"""Converting checkpoints, those of the paper's Flax code included. [spec 14]"""

from pegasusx_ref.conversion.converter import convert

__all__ = ["convert"]
