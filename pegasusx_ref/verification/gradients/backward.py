"""The check of a backward pass: every gradient is computed again from the candidate's own tensors. [spec 16]"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pegasusx_ref.errors import InputError
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.gradients.loss import backward, by_parameter, loss_and_gradients
from pegasusx_ref.model.gradients.place import Place
from pegasusx_ref.model.weights import EMBEDDING_COPIES, Weights, tie_embeddings
from pegasusx_ref.tracing import listen, record
from pegasusx_ref.tracing.trace_points import is_gradient, layer_of
from pegasusx_ref.verification.candidates.inputs import Loss
from pegasusx_ref.verification.checking.arithmetics import Arithmetic
from pegasusx_ref.verification.checking.candidate_tensors import CandidateTensors
from pegasusx_ref.verification.checking.checker import Checker
from pegasusx_ref.verification.checking.error_bounds import Errors
from pegasusx_ref.verification.checking.estimate import Estimate, Origin
from pegasusx_ref.verification.gradients.rounded import Rounded

OPERATION = "backward"  # the name of every operation of a backward pass in a report


def check_backward(
    config: PegasusXConfig,
    tensors: Mapping[str, np.ndarray],
    batch: Mapping[str, Any],
    loss: Loss,
    forward: Mapping[str, Estimate],
    shown: CandidateTensors,
    checker: Checker,
    arithmetic: Arithmetic,
) -> None:
    """Compute the golden gradients from a candidate's tensors, and compare each with the candidate's. [spec 16.28]

    Args:
        config: of the model.
        tensors: its parameters, float64.
        batch: ids and masks, as for `loss_and_gradients`.
        loss: labels and label smoothing.
        forward: the tensors of the forward pass, as its verification went on with them.
        shown: the candidate's tensors.
        checker: compares a tensor, and returns the one to go on with.
        arithmetic: what the candidate computes in.

    Raises:
        InputError: the candidate shows no gradient.
    """
    if not any(map(is_gradient, shown)):
        raise InputError("the candidate has no gradients: name them as trace points and parameters, with .grad behind")
    with record("*.grad") as clean:
        _, of_parameters = loss_and_gradients(config, tensors, batch, *loss)
    clean |= {f"{name}.grad": gradient for name, gradient in of_parameters.items()}
    listener = GradientListener(checker, clean, arithmetic, config.tie_word_embeddings)
    known: dict[str, Any] = {name: rounded(estimate, arithmetic) for name, estimate in forward.items()}
    place = Place(config, Weights(tie_embeddings(tensors)), known, listener.parameters)
    with listen(listener, "*.grad"):
        backward(place, batch, *loss)
    listener.check_parameters(by_parameter(config, listener.parameters, tensors))


class GradientListener:
    """A listener to a backward pass that compares each gradient and replaces it by the candidate's.

    Args:
        checker: see `check_backward`.
        clean: gradients by name that follow from the inputs alone, for the end-to-end error.
        arithmetic: what the candidate computes in.
        is_tied: whether one table has several uses, so that its gradient is complete at the end.

    Attributes:
        parameters: gradients of parameters that were collected so far.
    """

    def __init__(
        self, checker: Checker, clean: Mapping[str, np.ndarray], arithmetic: Arithmetic, is_tied: bool
    ) -> None:
        self._checker, self._clean, self._arithmetic = checker, clean, arithmetic
        self._later = EMBEDDING_COPIES if is_tied else EMBEDDING_COPIES[:2]  # collected from at the end
        self._layer, self._checked = "", set[str]()
        self.parameters: dict[str, Any] = {}

    def __call__(self, name: str, gradient: Any) -> Rounded:
        """Compare the gradient of a trace point, and return the one that the backward pass continues with."""
        if layer_of(name) != self._layer:  # the parameters of a layer are complete where the next one begins
            self._layer = layer_of(name)
            self.check_parameters({name: x for name, x in self.parameters.items() if name not in self._later})
        return self._compare(name, gradient)

    def check_parameters(self, gradients: Mapping[str, Any]) -> None:
        """Compare gradients of parameters, each once."""
        for name in [name for name in gradients if name not in self._checked]:
            self._checked.add(name)
            self._compare(f"{name}.grad", gradients[name])

    def _compare(self, name: str, gradient: Any) -> Rounded:
        if not isinstance(gradient, Rounded):  # zeros where nothing is passed back
            gradient = Rounded(gradient, np.zeros(gradient.shape), self._arithmetic)
        value, variance = gradient.value, gradient.variance + self._arithmetic.tiny**2
        if self._arithmetic.dtype == "float64":  # the golden gradient is rounded too
            variance = 2 * variance
        errors = Errors(np.zeros_like(value), np.zeros_like(value)).inheriting(variance)
        origin = Origin(OPERATION, (), {}, lambda: value)
        estimate = Estimate(value, self._clean[name], errors, gradient.is_direct, origin, (name,), doubt=gradient.doubt)
        return rounded(self._checker(name, estimate) or estimate, self._arithmetic)


def rounded(estimate: Estimate, arithmetic: Arithmetic) -> Rounded:
    """Return a tensor that golden functions take: the candidate's own one, or the expected one with its errors."""
    if estimate.is_known:
        return Rounded.exact(estimate.value, arithmetic)
    return Rounded(estimate.value, estimate.variance, arithmetic, is_direct=False, doubt=estimate.doubt)
