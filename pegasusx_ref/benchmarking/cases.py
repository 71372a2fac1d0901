"""What is measured: one piece of work at one size in one dtype, who does it, and how fast it is meant to be."""

from dataclasses import dataclass
from typing import Any, Self

from pegasusx_ref.model.config import PRESETS, PegasusXConfig

OURS = ("numpy", "torch", "cupy")  # by their backends' names
THEIRS = "transformers"
MACHINE = (
    "machine"  # does nothing but the machine's fastest products or reads, for the time that the work takes at least
)

# The encoder needs few tokens to choose from, and no decoder; the decoder no encoder, as it is given random states.
_CHANGES: dict[str, dict[str, int]] = {
    "encoder": {"decoder_layers": 0, "vocab_size": 256},
    "decoder": {"encoder_layers": 1},
    "load": {},
    "core": {},
}


@dataclass(frozen=True)
class Aim:
    """How good an implementation is meant to be.

    Attributes:
        implementation: whose aim it is.
        figure: "time" or "memory", at most `value` times that of the case's reference; "growth", time at most `value`
            times its own with `Case.grows_from` tokens; "share", at least `value` of the machine's limit.
        value: the limit.
    """

    implementation: str
    figure: str
    value: float


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        kind: "encoder"; "decoder", a token over given encoder states; "load", reading a checkpoint and every number in
            it; "core", the attention of one staggered encoder layer.
        preset: the model's shape.
        dtype: what it computes in.
        implementations: who does it, in turn.
        tokens: T, of the source; 0 where there is none.
        beams: texts that are followed in decoding.
        grows_from: tokens of the case whose time the growth is counted from.
        aims: how good implementations are meant to be.
    """

    kind: str
    preset: str
    dtype: str
    implementations: tuple[str, ...]
    tokens: int = 0
    beams: int = 1
    grows_from: int | None = None
    aims: tuple[Aim, ...] = ()

    @property
    def name(self) -> str:
        """What the case is called: its kind, shape, tokens, beams, and its dtype unless that is float32."""
        parts = [self.kind, self.preset]
        if self.tokens:
            parts.append(str(self.tokens))
        if self.kind == "decoder":
            parts.append(f"{self.beams}-beam{'s' if self.beams > 1 else ''}")
        if self.dtype != "float32":
            parts.append(self.dtype.replace("bfloat", "bf"))
        return "-".join(parts)

    @property
    def reference(self) -> str:
        """Whose time and memory the others' are divided by."""
        return next((name for name in (THEIRS, "torch") if name in self.implementations), self.implementations[0])

    @property
    def config(self) -> PegasusXConfig:
        """The model's configuration, without what this kind of work does not touch."""
        return PegasusXConfig.preset(self.preset, **_CHANGES[self.kind])

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Self:
        """Make the case that `dataclasses.asdict` has taken apart, also by way of JSON."""
        aims = tuple(Aim(**aim) for aim in entries["aims"])
        return cls(**(entries | {"implementations": tuple(entries["implementations"]), "aims": aims}))


PRESET_NAMES = tuple(PRESETS)
