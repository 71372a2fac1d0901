"""Public names for intermediate tensors: where they are made, how to record and how to replace them. [spec 16]"""

from pegasusx_ref.tracing.listeners import Listener, listen, record, scope, tap, wanted
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general, numbers_in

__all__ = ["TRACE_POINTS", "Listener", "general", "listen", "numbers_in", "record", "scope", "tap", "wanted"]
