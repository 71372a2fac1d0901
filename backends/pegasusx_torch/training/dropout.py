"""Dropout that repeats itself for a seed, as a layer that is computed twice needs it."""

from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAX_SEED = 2**62


def new_seed() -> int:
    """Draw a seed from the program's generator, which `torch.manual_seed` sets."""
    return int(torch.randint(MAX_SEED, ()))


class Dropout(NamedTuple):
    """The decisions for a rate and a seed, on a CPU.

    The rate is rounded to a multiple of 1 / 65,536: 16 random bits take a quarter of the time of a random number.
    """

    rate: float
    seed: int

    @property
    def scale(self) -> float:
        """The factor of the numbers that are kept."""
        return 0.0 if self.rate == 1 else 1 / (1 - self.rate)

    def kept(self, shape: tuple[int, ...], *place: int) -> np.ndarray | None:
        """Return which numbers are kept; None for a rate of 0.

        Args:
            shape: of the numbers.
            place: where they are, for decisions of their own.
        """
        if not self.rate:
            return None
        bits = np.random.SFC64([self.seed, *place]).random_raw(-(-prod(shape) // 4)).view(np.uint16)
        kept: np.ndarray = bits[: prod(shape)].reshape(shape) >= round(self.rate * 2**16)
        return kept


def dropped(x: Tensor, rate: float) -> Tensor:
    """Set numbers to 0 at random, and divide the others by the probability that they are kept.

    Args:
        x: of any shape.
        rate: probability of 0.
    """
    if not rate:
        return x
    if x.device.type != "cpu":
        y: Tensor = torch.native_dropout(x, rate, True)[0]
        return y
    dropout = Dropout(rate, new_seed())
    return (x * torch.from_numpy(dropout.kept(tuple(x.shape)))).mul_(dropout.scale)
