"""Capture of every tensor of a live transformers model with its gradient, and of parameters' gradients. [spec 16]"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.candidates.inputs import Loss
from pegasusx_ref.verification.candidates.transformers_capture import Capture


class GradientCapture(Capture):
    """Tensors of one forward and one backward pass of transformers' model, with their gradients.

    All tensors are in memory at once, as they are in any backward pass. A tensor that the backward pass does not reach
    has the gradient 0; one that needs none, because parameters are frozen, has no gradient.

    Args:
        model: transformers' `PegasusXForConditionalGeneration`.
        config: its configuration.
        inputs: arrays by name, with those of a loss.
    """

    needs_gradients = True

    def __init__(self, model: Any, config: PegasusXConfig, inputs: Mapping[str, Any]) -> None:
        self._loss = Loss(*(inputs[name] for name in Loss._fields))
        super().__init__(model, config, {name: x for name, x in inputs.items() if name not in Loss._fields})

    def __getitem__(self, name: str) -> np.ndarray:
        return self._between[name]

    def _run(self, watch: Callable[[], None], what: Callable[[], Any]) -> Any:
        """Run the model forward and backward; the parameters' own gradients are those of before."""
        self._inside = self._between
        parameters = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        before = {name: p.grad for name, p in parameters.items()}
        try:
            for p in parameters.values():
                p.grad = None
            self._backward(super()._run(watch, what).logits)
            for name, p in parameters.items():
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                self._between[f"{name.removeprefix('model.')}.grad"] = np.array(to_numpy(gradient))
        finally:
            for name, p in parameters.items():
                p.grad = before[name]
        self._names.update(self._between)

    def _backward(self, logits: Any) -> None:
        """Run the backward pass from the loss that transformers and its `Trainer` compute."""
        labels = torch.from_numpy(self._loss.labels).to(logits.device)
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=self._loss.label_smoothing
        ).backward()

    def _watch_layer(self, place: str, layer: Any) -> None:
        super()._watch_layer(place, layer)
        self._watch_modules(place, layer)

    def _keep(self, name: str, tensor: Any) -> None:
        super()._keep(name, tensor)
        if tensor.requires_grad:
            self._keep_gradient(name, torch.zeros_like(tensor))
            tensor.register_hook(partial(self._keep_gradient, name))

    def _keep_gradient(self, name: str, gradient: Any) -> None:
        # Padding has no gradient of its own; of scores, whatever their values, it is cut like that of probabilities.
        of_padding = name.replace(".scores", ".probs")
        for part, cut in self._unpadded.tensors(of_padding, np.array(to_numpy(gradient))):
            self._between[f"{part.replace('.probs', '.scores') if of_padding != name else part}.grad"] = cut
