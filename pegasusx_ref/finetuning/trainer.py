"""A step of the training: gradients of all batches, checks, and the optimizer."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adafactor, AdamW

from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.errors import MAX_VALUE_LENGTH, NumericsError, shortened
from pegasusx_ref.finetuning.batches import Example, collate, num_labels
from pegasusx_ref.finetuning.settings import Settings
from pegasusx_ref.finetuning.workers import Workers
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.model.torch_module import PegasusXTorchModule

OPTIMIZERS = {
    # As in the paper's code: no weight decay, and squares of gradients down to 1e-30, which float32 still holds.
    "adafactor": partial(Adafactor, eps=(1e-15, 1e-3), weight_decay=0.0),
    "adamw": partial(AdamW, weight_decay=0.0),
}


class Trainer:
    """A module with its optimizer.

    Args:
        module: to train.
        settings: with their defaults filled in.
        workers: the processes of the run.

    Attributes:
        module: see the argument.
        optimizer: of torch.
    """

    def __init__(self, module: PegasusXTorchModule, settings: Settings, workers: Workers) -> None:
        self.module, self._settings, self._workers = module, settings, workers
        self.optimizer = OPTIMIZERS[settings.optimizer](module.parameters(), lr=settings.learning_rate)

    def take(self, step: int, examples: Sequence[Example]) -> float:
        """Take a step. It depends on the seed, the step, the weights and the optimizer alone.

        Args:
            step: its number, from 1.
            examples: of all batches of all processes.

        Returns:
            The loss: the mean over the labels of all examples.

        Raises:
            NumericsError: the loss or the gradient is not finite; the weights are those before the step.
            MemoryError: a batch is too large.
        """
        settings = self._settings
        torch.manual_seed(seed_of(settings.seed, step, self._workers.rank))
        self.module.train()
        self.optimizer.zero_grad()
        try:
            part = self._add_gradients(examples)
        except (RuntimeError, MemoryError) as error:
            if "allocate" not in str(error):  # in torch's and NumPy's errors of memory, but no other
                raise
            shape = f"{settings.batch_size} x {max(len(example.source) for example in examples)} source tokens"
            raise MemoryError(f"step {step}, {shape}: use a smaller batch and accumulate more of them") from error
        (loss,) = self._workers.total([part]).tolist()
        norm = float(clip_grad_norm_(self.module.parameters(), settings.clip or math.inf))
        if not math.isfinite(loss + norm):
            places = shortened(", ".join(str(example.place) for example in examples), MAX_VALUE_LENGTH)
            what = f"the norm of the gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
            raise NumericsError(
                f"step {step}: {what}, with rows {places}: lower the learning rate, or correct the rows"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        self.optimizer.step()
        return float(loss)

    def _add_gradients(self, examples: Sequence[Example]) -> float:
        """Add the gradients of this process's batches.

        Args:
            examples: of the whole step.

        Returns:
            This process's part of the loss, which is the mean over the labels of the whole step.
        """
        settings, workers, part = self._settings, self._workers, 0.0
        for i in range(settings.accumulate):
            start = (i * workers.count + workers.rank) * settings.batch_size
            batch = examples[start : start + settings.batch_size]
            is_last = i == settings.accumulate - 1
            with nullcontext() if is_last or workers.count == 1 else workers.connected.no_sync():
                loss = workers.connected(**collate(batch), smoothing=settings.label_smoothing).loss
                loss = loss * (num_labels(batch) / num_labels(examples))
                (loss * workers.count).backward()  # torch averages over the processes
            part += loss.item()
        return part


def load_module(
    model: str | Path, settings: Settings, device: str | int | None, hub: HubOptions
) -> PegasusXTorchModule:
    """Load a model to train, with the settings' dropout."""
    loaded: Any = PegasusXForConditionalGeneration.from_pretrained(
        model, "torch", device, settings.dtype, trainable=True, **hub
    )
    module: PegasusXTorchModule = loaded
    if settings.dropout is not None:
        module.set_dropout(settings.dropout, settings.dropout, settings.dropout)
    return module


def seed_of(*numbers: int) -> int:
    """Return a seed that depends on all the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
