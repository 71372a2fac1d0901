"""The outputs of a model, with transformers' field names; optional ones are taken from the trace. [spec 16]"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np

from pegasusx_ref.backend import Backend
from pegasusx_ref.model.kv_cache import DecoderCache
from pegasusx_ref.tracing import record

Arrays = tuple[np.ndarray, ...]


@dataclass(eq=False)
class ModelOutput:
    """Named results, as in transformers: attributes, and an ordered dictionary of those that are not None.

    Its values are found by name and by position.
    """

    def items(self) -> list[tuple[str, Any]]:
        """Return names and values, in order."""
        return [(f.name, value) for f in fields(self) if (value := getattr(self, f.name)) is not None]

    def keys(self) -> list[str]:
        """Return the names, in order."""
        return [name for name, _ in self.items()]

    def values(self) -> list[Any]:
        """Return the values, in order."""
        return [value for _, value in self.items()]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values, in order."""
        return tuple(self.values())

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value by its name, or the default if it is None or there is no such name."""
        return dict(self.items()).get(name, default)

    def __getitem__(self, key: str | int | slice) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.items())


@dataclass(eq=False)
class EncoderOutput(ModelOutput):
    """The encoder's output, accepted by `encoder_outputs=`.

    Attributes:
        last_hidden_state: (B, T, D), after the last LayerNorm.
        hidden_states: layers + 1 arrays (B, T, D): the input of every layer, then `last_hidden_state`.
        attentions: for every layer {"global": (B, H, G, G+T), "local": [(B, H, S, G+S), …]}, one array for each block.
        global_hidden_states: layers + 1 arrays (B, G, D): the input of every layer, then `global_hidden_state`.
        global_hidden_state: (B, G, D), the global tokens after the last layer, without LayerNorm.
        attention_mask: (B, T) booleans, or None if every token is real; the decoder uses it for cross-attention.
    """

    last_hidden_state: np.ndarray
    hidden_states: Arrays | None = None
    attentions: tuple[dict[str, Any], ...] | None = None
    global_hidden_states: Arrays | None = None
    global_hidden_state: np.ndarray | None = None
    attention_mask: np.ndarray | None = None

    @classmethod
    def of(cls, outputs: Any) -> Self:
        """Read what a caller passes as encoder outputs.

        Args:
            outputs: an output of `encode` or of a model (also transformers'), a tuple that begins with the states, or
                the states themselves.
        """
        if isinstance(outputs, cls):
            return outputs
        prefix = "encoder_" if hasattr(outputs, "encoder_last_hidden_state") else ""
        if hasattr(outputs, f"{prefix}last_hidden_state"):
            names = ("last_hidden_state", "hidden_states", "attentions", "attention_mask")
            found: dict[str, Any] = {name: getattr(outputs, prefix + name, None) for name in names}
            return cls(**found)
        return cls(outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs)


@dataclass(eq=False)
class Seq2SeqModelOutput(ModelOutput):
    """The output of `PegasusXModel`.

    Attributes:
        last_hidden_state: (B, L, D), the decoder's, after the last LayerNorm.
        past_key_values: the decoder's cache, for `past_key_values=`.
        decoder_hidden_states: layers + 1 arrays (B, L, D): the input of every layer, then `last_hidden_state`.
        decoder_attentions: (B, H, L, X) for each layer.
        cross_attentions: (B, H, L, T) for each layer.
        encoder_last_hidden_state: (B, T, D).
        encoder_hidden_states: see `EncoderOutput.hidden_states`.
        encoder_attentions: see `EncoderOutput.attentions`.
        encoder_attention_mask: see `EncoderOutput.attention_mask`.
    """

    last_hidden_state: np.ndarray
    past_key_values: DecoderCache | None = None
    decoder_hidden_states: Arrays | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    encoder_last_hidden_state: np.ndarray | None = None
    encoder_hidden_states: Arrays | None = None
    encoder_attentions: tuple[dict[str, Any], ...] | None = None
    encoder_attention_mask: np.ndarray | None = None


@dataclass(eq=False, kw_only=True)
class Seq2SeqLMOutput(ModelOutput):
    """The output of `PegasusXForConditionalGeneration`: `Seq2SeqModelOutput` with logits instead of hidden states.

    Attributes:
        loss: mean cross-entropy per label in nats, if labels were passed.
        logits: (B, L, V).
    """

    loss: float | None = None
    logits: np.ndarray
    past_key_values: DecoderCache | None = None
    decoder_hidden_states: Arrays | None = None
    decoder_attentions: Arrays | None = None
    cross_attentions: Arrays | None = None
    encoder_last_hidden_state: np.ndarray | None = None
    encoder_hidden_states: Arrays | None = None
    encoder_attentions: tuple[dict[str, Any], ...] | None = None
    encoder_attention_mask: np.ndarray | None = None


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """The output of `generate` with return_dict_in_generate=True.

    N rows are decoded: B num_beams, without beams B R.

    Attributes:
        sequences: int64 ids (B R, L).
        sequences_scores: scores of beam search's texts (B R,), log-probability / length^length_penalty.
        scores: with output_scores, for every step the processed scores of all tokens (N, V).
        logits: with output_logits, for every step the logits of all tokens (N, V).
        beam_indices: with beams, the row that generated each token (B R, L - 1); -1 after the end.
        encoder_attentions: with output_attentions, see `EncoderOutput.attentions`.
        encoder_hidden_states: with output_hidden_states, see `EncoderOutput.hidden_states`.
        decoder_attentions: with output_attentions, for every step, for each layer (N, H, 1, tokens so far).
        cross_attentions: with output_attentions, for every step, for each layer (N, H, 1, T).
        decoder_hidden_states: with output_hidden_states, for every step layers + 1 arrays (N, 1, D).
        transition_scores: the processed score of each token (B R, L - 1), as transformers' `compute_transition_scores`
            with normalize_logits=False gives it.
        token_log_probs: the log-probability of each token (B R, L - 1), with normalize_logits=True.
    """

    sequences: np.ndarray
    sequences_scores: np.ndarray | None = None
    scores: Arrays | None = None
    logits: Arrays | None = None
    beam_indices: np.ndarray | None = None
    encoder_attentions: tuple[dict[str, Any], ...] | None = None
    encoder_hidden_states: Arrays | None = None
    decoder_attentions: tuple[Arrays, ...] | None = None
    cross_attentions: tuple[Arrays, ...] | None = None
    decoder_hidden_states: tuple[Arrays, ...] | None = None
    transition_scores: np.ndarray | None = None
    token_log_probs: np.ndarray | None = None


HIDDEN_STATES = ("*.layers.*.input", "decoder.layer_norm")
ATTENTIONS = ("*.probs",)


class WantedOutputs(NamedTuple):
    """Which optional outputs a call returns."""

    hidden_states: bool
    attentions: bool

    def recording(self) -> AbstractContextManager[dict[str, Any]]:
        """Record their trace points; without any, no listener is installed."""
        patterns = (*(HIDDEN_STATES if self.hidden_states else ()), *(ATTENTIONS if self.attentions else ()))
        return record(*patterns) if patterns else nullcontext({})


class Recorded:
    """Collects the optional outputs from recorded trace points. [spec 16.6]

    Args:
        ops: the backend of the tensors.
        trace: recorded tensors by name.
    """

    def __init__(self, ops: Backend, trace: Mapping[str, Any]) -> None:
        self._ops = ops
        self._trace = trace

    def layers(self, name: str, num_layers: int) -> list[np.ndarray]:
        """Collect a trace point over all layers; ``{}`` in its name is the layer's number."""
        return [self._ops.to_numpy(self._trace[name.format(i)]) for i in range(num_layers)]

    def encoder_attentions(self, num_layers: int) -> tuple[dict[str, Any], ...]:
        """Collect the encoder's attention probabilities, as `EncoderOutput.attentions` describes them."""
        return tuple(self._encoder_layer_attentions(f"encoder.layers.{i}.self_attn") for i in range(num_layers))

    def _encoder_layer_attentions(self, place: str) -> dict[str, Any]:
        local: list[np.ndarray] = []
        while (name := f"{place}.local.{len(local)}.probs") in self._trace:
            local.append(self._ops.to_numpy(self._trace[name]))
        return {"global": self._ops.to_numpy(self._trace[f"{place}.global.probs"]), "local": local}
