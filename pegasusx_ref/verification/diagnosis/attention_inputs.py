"""What an attention of the candidate computes from, collected from the tensors that it shows. [spec 16]"""

import re
from functools import cached_property
from typing import Any

import numpy as np

from pegasusx_ref.backend.quantized import dense
from pegasusx_ref.golden.attention import causal_mask, split_heads
from pegasusx_ref.golden.feed_forward import linear
from pegasusx_ref.golden.normalization import layer_norm
from pegasusx_ref.model.encoder import is_staggered, layer_blocks
from pegasusx_ref.verification.candidates.transformers_layout import padded_blocks
from pegasusx_ref.verification.checking.estimate import Estimate
from pegasusx_ref.verification.diagnosis.attention_steps import STEPS, Block, Streams
from pegasusx_ref.verification.diagnosis.failed_operation import FailedOperation, LayerContext
from pegasusx_ref.verification.diagnosis.neighbour_bugs import own_input, parameter_place

NAME = re.compile(r"((encoder|decoder)\.layers\.(\d+))\.(self_attn|encoder_attn)\.(?:(local\.(\d+)|\w+)\.)?(\w+)")
KINDS = {"tokens": "tokens", "local": "tokens", "globals": "globals", "global": "globals"}


class Attention:
    """The attention that a failed operation belongs to.

    Args:
        op: the failed operation: scores, softmax, weighted sum or output projection.
    """

    def __init__(self, op: FailedOperation) -> None:
        match = NAME.fullmatch(op.name)
        assert match is not None, op.name
        self.layer_name, _, number, module, part, block, step = match.groups()
        self.place, self.number = f"{self.layer_name}.{module}", int(number)
        self.layer, self.config, self._op = op.layer, op.layer.config, op
        self.kind = "cross" if module == "encoder_attn" else KINDS[part.split(".")[0]] if part else "self"
        self.step, self.block = step, int(block or 0)
        self._shown: dict[str, np.ndarray | None] = {}
        self.num_heads = op.num_heads

    @property
    def is_encoder(self) -> bool:
        """Whether the attention is one of the encoder."""
        return self.kind in ("tokens", "globals")

    @cached_property
    def streams(self) -> Streams | None:
        """Queries, keys and values; None where they do not follow from tensors that the candidate shows."""
        names = {"q": self.stream("q"), "k": self.stream("k"), "v": self.stream("v")}
        if self.is_encoder:
            names |= {"global_k": "globals.k_proj", "global_v": "globals.v_proj"}
        found = {key: self.heads(f"{self.place}.{name}") for key, name in names.items()}
        heads = {key: x for key, x in found.items() if x is not None}
        lengths, (S, X) = {key: x.shape[2] for key, x in heads.items()}, self.visible.shape[1:]
        right = {"k": X, "v": X, "global_k": self.config.num_global_tokens, "global_v": self.config.num_global_tokens}
        right |= {"tokens": {"q": X}, "self": {"q": S}}.get(self.kind, {"q": lengths.get("q", 0)})
        if lengths != {key: right[key] for key in names}:
            return None
        if not self.is_encoder:
            heads |= {"global_k": heads["k"][:, :, :0], "global_v": heads["v"][:, :, :0]}
        H, F = heads["q"].shape[1::2]
        return Streams(**heads, visible=self.visible, filling=np.zeros((2, H, 1, F)))

    def fillings(self) -> list[np.ndarray | None]:
        """List what may fill blocks of tokens: nothing, zeros, or zeros that went through the LayerNorm."""
        if not self.is_encoder or all((block.keys >= 0).all() for block in self.blocks(filled=True)):
            return [None]
        bias = self.layer.weights[f"{self.layer_name}.self_attn_layer_norm.bias"]
        weights = (dense(self.layer.weights[f"{self.place}.{part}_proj.weight"], np.float64) for part in "kv")
        normed = np.stack([linear(bias, weight).reshape(self.num_heads, 1, -1) for weight in weights])
        return [None, np.zeros_like(normed), normed] if normed.any() else [None, normed]

    def stream(self, which: str) -> str:
        """Return the name of a projection within the attention."""
        if not self.is_encoder:
            return f"{which}_proj"
        return f"{'globals' if which == 'q' and self.kind == 'globals' else 'tokens'}.{which}_proj"

    def heads(self, name: str) -> np.ndarray | None:
        """Return a projection, split into heads."""
        x = shown(self.layer, name)
        x = self._project(name) if x is None else x
        fits = x is not None and x.shape[::2] == (len(self.layer.source_mask_BT), self.config.d_model)
        return split_heads(x, self.num_heads) if x is not None and fits else None

    def _project(self, name: str) -> np.ndarray | None:
        """Compute a projection that is not shown from its input."""
        norm, weights = own_input(name), self.layer.weights
        x = shown(self.layer, norm)
        if x is None and (x := shown(self.layer, own_input(norm))) is not None:
            weight, bias = (weights[f"{parameter_place(norm)}.{part}"] for part in ("weight", "bias"))
            x = layer_norm(x, weight, bias, self.config.layer_norm_eps)
        return None if x is None else linear(x, dense(weights[f"{parameter_place(name)}.weight"], np.float64))

    @property
    def visible(self) -> np.ndarray:
        """Which keys, without global tokens, each query may attend to (B, 1 or S, X)."""
        if self.kind != "self":
            return self.layer.source_mask_BT[:, None]
        found = self._op.settings.get("visible")
        if found is None and self._op.estimate is not None:
            found = mask_of(self._op.estimate)
        if found is None:
            L = self._op.inputs[0].shape[-2]
            found = causal_mask(L, L)
        return np.broadcast_to(found, (self.layer.source_mask_BT.shape[0], *found.shape[1:]))

    def blocks(self, filled: bool = False) -> list[Block]:
        """List the right blocks, filled with zeros to whole blocks or not."""
        streams = self.streams
        assert streams is not None
        S, X = streams.q.shape[2], streams.k.shape[2]
        K, staggered = self.config.block_size, self.is_encoder and is_staggered(self.config, self.number)
        if not self.is_encoder or (self.kind == "globals" and not filled):
            return [Block(np.arange(S), np.arange(X))]
        padded = padded_blocks(K // 2 if staggered else 0, X, K)
        if self.kind == "globals":
            return [Block(np.arange(S), np.concatenate(padded))]
        if filled:
            return [Block(places, places) for places in padded]
        return [Block(places, places) for places in (np.arange(*b) for b in layer_blocks(self.config, X, self.number))]

    def shown_steps(self, n: int, until: str) -> dict[str, np.ndarray]:
        """Return what the candidate shows of a block before a step, the latest tensor only."""
        part = {"tokens": f"local.{n}.", "globals": "global."}.get(self.kind, "")
        before = STEPS[: STEPS.index(until)] if until in STEPS else STEPS
        for step in reversed(before):
            if (x := self.shown(f"{part}{step}")) is not None:
                return {step: x}
        return {}

    def shown(self, name: str) -> np.ndarray | None:
        """Return a tensor inside the attention, read once; None where it is not shown."""
        if name not in self._shown:
            self._shown[name] = shown(self.layer, f"{self.place}.{name}", num_axes=4)
        return self._shown[name]


def shown(layer: LayerContext, name: str, num_axes: int = 3) -> np.ndarray | None:
    """Return a tensor of the candidate; None where it is not shown or has another number of axes."""
    x = layer.tensors.get(name)
    if x is None or x.ndim != num_axes:
        return None
    if name.endswith("scores"):
        return x
    return np.where(np.isfinite(x), x, 0.0)  # padding may hold anything


def mask_of(estimate: Estimate) -> Any:
    """Return the mask of the first scores that an estimate was computed from."""
    if estimate.origin is None:
        return None
    if estimate.origin.operation == "scores":
        return estimate.origin.settings["visible"]
    return next((found for x in estimate.origin.inputs if (found := mask_of(x)) is not None), None)
