"""The model's operations for training: differentiable, with dropout, and with little memory."""

from pegasusx_torch.training.backend import Rates, TrainingBackend
from pegasusx_torch.training.embedding import TiedTable

__all__ = ["Rates", "TiedTable", "TrainingBackend"]
