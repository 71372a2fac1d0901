"""How a tensor came about, in words that a manifest can hold: the operation, and the names of all that went in."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general
from pegasusx_ref.verification.estimate import Estimate
from pegasusx_ref.verification.vectors.sampling import Sampling


class Description:
    """Listens to a run on golden tensors and writes down what makes what; nothing here knows the model.

    Args:
        weights: of the model, by checkpoint name.
        inputs: of the run, by name.
        sampling: what is kept of it.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], sampling: Sampling) -> None:
        self._weights = {id(tensor): name for name, tensor in weights.items()}
        self._inputs, self._sampling = inputs, sampling
        self.tensors: list[dict[str, Any]] = []

    def __call__(self, name: str, estimate: Estimate) -> None:
        """Describe a tensor."""
        if not self._sampling.keeps(name):
            return
        dims = TRACE_POINTS[general(name)]
        entry: dict[str, Any] = {
            "name": name,
            "dims": dims,
            "shape": list(estimate.shape),
            "valid": {"G": None, "L": "valid.target"}.get(dims[-2], "valid.source"),
        }
        if "S" in dims:
            entry["slice"] = list(self._sampling.block(name))
        if sample := self._sampling.of(name):
            entry["sampled"] = sample._asdict()
        self.tensors.append(entry | self._made(estimate))

    def _made(self, estimate: Estimate) -> dict[str, Any]:
        """Name the operation, its inputs, its weights and its numbers."""
        made = estimate.made
        if made is None:
            return {"operation": estimate.operation, "inputs": list(estimate.names)}
        names = [name for x in made.inputs for name in x.names if self._sampling.keeps(name)]
        weights, settings = {}, {}
        for key, value in made.settings.items():
            if id(value) in self._weights:
                weights[key] = self._weights[id(value)]
            elif key == "ids":
                names += [name for name, ids in self._inputs.items() if np.array_equal(ids, value)]
            elif isinstance(value, int | float | str):
                settings[key] = value
        found: dict[str, Any] = {"operation": made.operation, "inputs": names}
        return found | ({"weights": weights} if weights else {}) | ({"settings": settings} if settings else {})
