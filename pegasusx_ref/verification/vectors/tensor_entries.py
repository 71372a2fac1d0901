"""The entries of a manifest that describe each tensor: its operation, and the names of the operation's inputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general
from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.vectors.kept_rows import KeptRows


class TensorEntries:
    """A listener to a checking run on golden tensors that describes how each tensor is computed.

    Args:
        weights: of the model, by checkpoint name.
        inputs: of the run, by name.
        kept: the part of the trace that is kept.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], kept: KeptRows) -> None:
        self._weights = {id(tensor): name for name, tensor in weights.items()}
        self._inputs, self._kept = inputs, kept
        self.entries: list[dict[str, Any]] = []

    def __call__(self, name: str, estimate: Estimate) -> None:
        """Add the entry of a tensor."""
        if not self._kept.keeps(name):
            return
        dims = TRACE_POINTS[general(name)]
        entry: dict[str, Any] = {
            "name": name,
            "dims": dims,
            "shape": list(estimate.shape),
            "valid": {"G": None, "L": "valid.target"}.get(dims[-2], "valid.source"),
        }
        if "S" in dims:
            entry["slice"] = list(self._kept.valid.block(name))
        if selection := self._kept.selection(name):
            entry["sampled"] = selection._asdict()
        self.entries.append(entry | self._computation(estimate))

    def _computation(self, estimate: Estimate) -> dict[str, Any]:
        """Describe the operation, its inputs, its weights and its numbers."""
        origin = estimate.origin
        if origin is None:
            return {"operation": estimate.operation, "inputs": list(estimate.names)}
        names = [name for x in origin.inputs for name in x.names if self._kept.keeps(name)]
        weights, settings = {}, {}
        for key, value in origin.settings.items():
            if id(value) in self._weights:
                weights[key] = self._weights[id(value)]
            elif key == "ids":
                names += [name for name, ids in self._inputs.items() if np.array_equal(ids, value)]
            elif isinstance(value, int | float | str):
                settings[key] = value
        found: dict[str, Any] = {"operation": origin.operation, "inputs": names}
        return found | ({"weights": weights} if weights else {}) | ({"settings": settings} if settings else {})
