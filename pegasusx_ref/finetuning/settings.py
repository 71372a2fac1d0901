"""The settings of a fine-tuning, and the learning rate of each step."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

from pegasusx_ref.checkpoint.settings import Limits
from pegasusx_ref.errors import InputError, shown

LEARNING_RATES = {"adafactor": 3e-3, "adamw": 1e-4}  # the first one is that of the paper's code
SCHEDULES = ("constant", "linear", "inverse-sqrt")
DTYPES = ("float32", "bfloat16", "float64")  # gradients of float16 would underflow
EPOCHS, WARMUP_STEPS, TARGET_TOKENS = 3, 1000, 256

_COUNT = Limits(1, 2**31 - 1, "a count")
_LENGTH = Limits(2, 2**31 - 1, "a token and the end token")
_PROBABILITY = Limits(0.0, 1.0, "a probability")
LIMITS = {
    "max_source_tokens": _LENGTH,
    "max_target_tokens": _LENGTH,
    "learning_rate": Limits(0.0, 1e3, "a step size"),
    "warmup_steps": Limits(0, 2**31 - 1, "a count"),
    "steps": _COUNT,
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "label_smoothing": _PROBABILITY,
    "clip": Limits(1e-30, math.inf, "a norm"),
    "dropout": _PROBABILITY,
    "seed": Limits(0, 2**64 - 1, "a seed"),
    "eval_every": _COUNT,
    "eval_summaries": Limits(0, 2**31 - 1, "a count"),
}


@dataclass(frozen=True)
class Settings:
    """How a model is fine-tuned; the defaults are those of the paper's code, with a shorter warm-up for short runs.

    Attributes:
        source_column: name of the documents' column.
        target_column: name of the summaries' column.
        max_source_tokens: longer documents are truncated; the model's maximum if None.
        max_target_tokens: longer summaries are truncated; 256, or the model's maximum, if None.
        optimizer: "adafactor" or "adamw".
        learning_rate: the highest; 0.003 for Adafactor, which multiplies it by a tensor's root mean square, 0.0001
            for AdamW.
        warmup_steps: during which the learning rate rises from 0; a tenth of the steps, at most 1,000, if None.
        schedule: after the warm-up "constant", "linear" to 0, or "inverse-sqrt": by the square root of the step.
        steps: updates of the weights.
        epochs: passes over the pairs, instead of steps; 3 if both are None.
        batch_size: pairs that a process computes at once.
        accumulate: batches of a process in one step.
        label_smoothing: probability that is spread over all tokens of the vocabulary.
        clip: the largest norm of the gradient; None for none.
        dropout: all three rates of dropout; those of config.json if None.
        seed: of the order of the pairs and of dropout.
        dtype: of the operands of products: "float32", "bfloat16" or "float64"; weights are float32 or float64.
        eval_every: steps between evaluations, each of which ends in a save; an epoch if None.
        eval_summaries: pairs to write a summary of at each evaluation, for ROUGE; 0 for none.
    """

    source_column: str = "document"
    target_column: str = "summary"
    max_source_tokens: int | None = None
    max_target_tokens: int | None = None
    optimizer: str = "adafactor"
    learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule: str = "inverse-sqrt"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    label_smoothing: float = 0.1
    clip: float | None = None
    dropout: float | None = None
    seed: int = 0
    dtype: str = "float32"
    eval_every: int | None = None
    eval_summaries: int = 32

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigError: a number is out of range.
            InputError: an unknown choice, or both steps and epochs.
        """
        for name, limits in LIMITS.items():
            if getattr(self, name) is not None:
                limits.check(name, getattr(self, name))
        for name, choices in (("optimizer", LEARNING_RATES), ("schedule", SCHEDULES), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={shown(getattr(self, name))} is unknown: choose {', '.join(choices)}")
        if self.steps is not None and self.epochs is not None:
            raise InputError(f"steps={self.steps} and epochs={self.epochs} exclude each other: pass one of them")

    def with_lengths(self, longest: int) -> Self:
        """Fill in the maximum lengths for a model.

        Args:
            longest: of the model's inputs, in tokens.
        """
        return self._filled(max_source_tokens=longest, max_target_tokens=min(TARGET_TOKENS, longest))

    def with_steps(self, steps_per_epoch: int) -> Self:
        """Fill in what is counted in steps, and the learning rate."""
        steps = self.steps or (self.epochs or EPOCHS) * steps_per_epoch
        counted = {"warmup_steps": min(WARMUP_STEPS, steps // 10), "eval_every": min(steps_per_epoch, steps)}
        filled = self._filled(learning_rate=LEARNING_RATES[self.optimizer], **counted)
        return dataclasses.replace(filled, steps=steps, epochs=None)

    def _filled(self, **defaults: Any) -> Self:
        return dataclasses.replace(self, **{name: v for name, v in defaults.items() if getattr(self, name) is None})

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: number of the step, from 1.
        """
        assert self.learning_rate is not None
        assert self.warmup_steps is not None
        assert self.steps is not None
        warmup = max(self.warmup_steps, 1)
        after = {
            "constant": 1.0,
            "linear": (self.steps + 1 - step) / max(self.steps + 1 - warmup, 1),
            "inverse-sqrt": math.sqrt(warmup / step),
        }
        return self.learning_rate * min(step / warmup, 1.0, after[self.schedule])
