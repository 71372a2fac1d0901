"""One place of the model in a backward pass: its parameters, its tensors of the forward pass, its gradients."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.tracing import scope, tap


class Place(NamedTuple):
    """A place such as ``encoder.layers.0`` or its ``self_attn``. [spec 19.1]

    Attributes:
        config: the model's configuration.
        parameters: every parameter by its full name.
        tensors: every tensor of the forward pass by trace point.
        gradients: of parameters, by full name; filled during the pass.
        prefix: of the place's parameters.
        trace_prefix: of the place's trace points, which have the stream's name (``tokens``) in addition.
    """

    config: PegasusXConfig
    parameters: Mapping[str, np.ndarray]
    tensors: Mapping[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    prefix: str = ""
    trace_prefix: str = ""

    def at(self, place: str) -> "Place":
        """Return a place inside this one."""
        return self._replace(prefix=f"{self.prefix}{place}.", trace_prefix=f"{self.trace_prefix}{place}.")

    def stream(self, name: str) -> "Place":
        """Return the same place for one of the encoder's streams, "tokens" or "globals", which share parameters."""
        return self._replace(trace_prefix=f"{self.trace_prefix}{name}.")

    def parameter(self, name: str) -> np.ndarray:
        """Return a parameter."""
        return self.parameters[self.prefix + name]

    def has(self, name: str) -> bool:
        """Return whether there is a parameter of this name."""
        return self.prefix + name in self.parameters

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor of the forward pass."""
        return self.tensors[self.trace_prefix + name]

    def collect(self, name: str, gradient: np.ndarray) -> None:
        """Add a gradient of a parameter to those of its other uses."""
        full_name = self.prefix + name
        self.gradients[full_name] = self.gradients[full_name] + gradient if full_name in self.gradients else gradient

    def tap(self, name: str, gradient: np.ndarray) -> np.ndarray:
        """Pass the gradient of a trace point to listeners, under its name with ``.grad``."""
        found: np.ndarray = tap(f"{self.trace_prefix}{name}.grad", gradient)
        return found

    def scope(self) -> AbstractContextManager[None]:
        """Return a scope in which golden functions tap gradients of this place."""
        return scope(self.trace_prefix.rstrip("."))
