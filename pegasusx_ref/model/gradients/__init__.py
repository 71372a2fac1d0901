"""Gradients of the loss by every parameter, written out by hand: each function undoes one of the forward pass."""

from pegasusx_ref.model.gradients.loss import loss_and_gradients

__all__ = ["loss_and_gradients"]
