"""PEGASUS-X as functions over a backend's operations, and the two models that users call.

`layers`, `encoder` and `decoder` are the network; `forward` is one run of it, `decode_step` one step of generation.
"""

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.pegasus_x import PegasusXForConditionalGeneration, PegasusXModel

__all__ = ["PegasusXConfig", "PegasusXForConditionalGeneration", "PegasusXModel"]
