"""The NumPy backend of pegasusx_ref: the golden functions at the CPU's speed, in float64 and float32."""

from pegasusx_numpy.backend import NumpyBackend

__all__ = ["NumpyBackend"]
