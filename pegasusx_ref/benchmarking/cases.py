"""Benchmark cases: one workload at one size and dtype, the implementations that run it, and the aims set for them."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pegasusx_ref.model.config import PegasusXConfig

TRANSFORMERS = "transformers"
BACKENDS = ("torch", "numpy", "cupy")  # this package's implementations
COMPILED = "transformers-compiled"  # under torch.compile
OTHERS = (COMPILED, "golden")  # that show where time goes; they have no aims
MACHINE = "machine"  # runs only large matrix products or memory reads; its time is the lower bound for the case's work

NEW_TOKENS = 12  # of a search: more steps than the torch backend needs before it packs weights
SUMMARY_TOKENS = 64  # of a text in "texts"
TARGET_TOKENS = 128  # of a text in training

# The encoder needs few token ids and no decoder. The decoder needs no encoder: it gets random states.
_REDUCED: dict[str, dict[str, int]] = {
    "encoder": {"decoder_layers": 0, "vocab_size": 256},
    "decoder": {"encoder_layers": 1},
}


@dataclass(frozen=True)
class Aim:
    """The performance that an implementation is meant to reach in a case.

    Attributes:
        implementation: to which the aim applies.
        figure: the metric: "time" or "memory", a ratio to the case's reference; "growth" or "memory growth", divided by
            the same implementation's time or memory at `Case.grows_from` tokens; "share" of the machine's limit;
            "seconds".
        value: the lower limit of a share, the upper limit of every other metric.
    """

    implementation: str
    figure: str
    value: float

    def is_met(self, value: float | None) -> bool:
        """Check a measured value, None where there is none."""
        return value is not None and (value >= self.value if self.figure == "share" else value <= self.value)


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        kind: "encoder"; "decoder", one token over given encoder states; "load", reading a checkpoint and every number
            in it; "core", the attention of one staggered encoder layer; "training", loss and gradients;
            "texts", ids to ids; "start", the summary of a sentence by a process of its own, from its start to its end.
        preset: the model's shape.
        dtype: of weights and computation.
        implementations: in the order in which they take turns.
        tokens: T, source tokens; 0 for "load".
        beams: of the search in "decoder" and "texts".
        texts: number of texts in "texts" and "training".
        grows_from: tokens of the shorter case that the growth of time is measured from.
        aims: of some of the implementations.
    """

    kind: str
    preset: str
    dtype: str
    implementations: tuple[str, ...]
    tokens: int = 0
    beams: int = 1
    texts: int = 1
    grows_from: int | None = None
    aims: tuple[Aim, ...] = ()

    @property
    def name(self) -> str:
        """Kind, preset, tokens, beams of a search, number of texts, and the dtype unless it is float32."""
        beams = f"{self.beams}-beam{'s' if self.beams > 1 else ''}" if self.kind in ("decoder", "texts") else ""
        texts = f"batch-{self.texts}" if self.texts > 1 else ""
        dtype = self.dtype.replace("bfloat", "bf") if self.dtype != "float32" else ""
        return "-".join(filter(None, [self.kind, self.preset, str(self.tokens or ""), beams, texts, dtype]))

    @property
    def reference(self) -> str:
        """The implementation by whose time and memory the others' are divided."""
        return next((name for name in (TRANSFORMERS, "torch") if name in self.implementations), self.implementations[0])

    @property
    def config(self) -> PegasusXConfig:
        """The model's configuration, reduced to what this kind of case uses."""
        return PegasusXConfig.preset(self.preset, **_REDUCED.get(self.kind, {}))

    @property
    def search_settings(self) -> dict[str, Any]:
        """The arguments of `generate` for a search of fixed length."""
        count = SUMMARY_TOKENS if self.kind == "texts" else NEW_TOKENS
        length = {"min_new_tokens": count, "max_new_tokens": count}
        return {"num_beams": self.beams, "do_sample": False} | length

    def source_ids(self, tokens: int) -> np.ndarray:
        """Draw the token ids (B, T) of the texts, the same in every call."""
        return np.random.default_rng(0).integers(106, self.config.vocab_size, (self.texts, tokens))

    def labels(self) -> np.ndarray:
        """Draw the labels (B, L) of the texts, the same in every call."""
        return np.random.default_rng(1).integers(106, self.config.vocab_size, (self.texts, TARGET_TOKENS))

    def encoder_states(self, tokens: int) -> np.ndarray:
        """Draw encoder outputs (1, T, D) in float32, the same in every call."""
        return np.random.default_rng(0).standard_normal((1, tokens, self.config.d_model), dtype=np.float32)

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Self:
        """Rebuild a case from the result of `dataclasses.asdict`, which may have been stored as JSON."""
        aims = tuple(Aim(**aim) for aim in entries["aims"])
        return cls(**(entries | {"implementations": tuple(entries["implementations"]), "aims": aims}))
