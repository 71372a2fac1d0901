"""The model's operations under autograd."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pegasusx_ref.golden.global_local import Blocks
from pegasusx_torch.attention import attention_masked
from pegasusx_torch.backend import MAX_CHUNK_TOKENS, TorchBackend
from pegasusx_torch.training.attention import Attention, Group, float32_on_cpu, prefers_single_heads
from pegasusx_torch.training.dropout import Dropout, dropped, new_seed
from pegasusx_torch.training.global_local import core_groups, fused_attention
from pegasusx_torch.training.linear import Linear
from pegasusx_torch.training.recomputation import Recomputed, RecomputedInChunks, seeded


class Rates(NamedTuple):
    """Probabilities of dropout, as in config.json."""

    dropout: float = 0.0  # of embeddings and of updates of the residual stream
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0


NO_DROPOUT = Rates()


class TrainingBackend(TorchBackend):
    """PyTorch under autograd, with dropout and with layers that are computed again in the backward pass.

    Weights stay in float32 (in float64 for dtype "float64"); half precision is the dtype of the operands of products.

    Args:
        device: see `TorchBackend`.
        dtype: see `TorchBackend`.
        rates: of dropout.

    Attributes:
        configured_rates: of dropout.
        is_training: whether there is dropout.
        recomputes: whether `recomputed` layers keep their inputs alone.
    """

    def __init__(self, device: Any = None, dtype: str = "float32", rates: Rates = NO_DROPOUT) -> None:
        super().__init__(device, dtype)
        self.configured_rates = rates
        self.is_training, self.recomputes = True, True
        self._is_recomputing = False

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"is_training": self.is_training, "recomputes": self.recomputes}
        return type(self), (self.device, self.dtype, self.configured_rates), state

    def on(self, device: torch.device) -> "TrainingBackend":
        """Return the same operations on a device."""
        if device == self._device:
            return self
        moved = TrainingBackend(device, self.dtype, self.configured_rates)
        moved.is_training, moved.recomputes = self.is_training, self.recomputes
        return moved

    @property
    def rates(self) -> Rates:
        """The rates of dropout now."""
        return self.configured_rates if self.is_training else NO_DROPOUT

    def recomputed(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of the model that keeps its arguments alone for the backward pass.

        Args:
            layer: `layer(ops, weights, config, *arguments)`. It returns what it computes by `apply_in_chunks`; results
                other than tensors become None.
        """

        def run(ops: Any, weights: Any, config: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
            names = list(weights)
            is_input = [isinstance(x, Tensor) and x.is_floating_point() for x in arguments]
            seed = new_seed() if any(self.rates) else None

            def call(*tensors: Tensor) -> tuple[Any, ...]:
                given = iter(tensors)
                values = type(weights)({name: next(given) for name in names})
                passed = [next(given) if is_tensor else x for x, is_tensor in zip(arguments, is_input, strict=True)]
                was_recomputing, self._is_recomputing = self._is_recomputing, torch.is_grad_enabled()
                try:
                    with seeded(seed, self._device):
                        outputs = layer(ops, values, config, *passed)
                finally:
                    self._is_recomputing = was_recomputing
                return tuple(y if isinstance(y, Tensor) else None for y in outputs)

            inputs = [x for x, is_tensor in zip(arguments, is_input, strict=True) if is_tensor]
            outputs: tuple[Tensor | None, ...]
            outputs = Recomputed.apply(call, *(weights[name] for name in names), *inputs)
            return outputs

        return run if self.recomputes and torch.is_grad_enabled() else layer

    # --- operations

    def apply_in_chunks(self, function: Callable[[Tensor], Tensor], x_BTD: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not self._is_recomputing:
            return function(x_BTD)
        seed = new_seed() if any(self.rates) else None

        def chunk(number: int, x: Tensor) -> Tensor:
            with seeded(None if seed is None else seed + number, self._device):
                return function(x)

        chunk_rows = MAX_CHUNK_TOKENS if self._device.type == "cpu" else 8 * MAX_CHUNK_TOKENS
        if self._is_recomputing:
            recomputed: Tensor = RecomputedInChunks.apply(chunk, chunk_rows, x_BTD)
            return recomputed
        y_BTD = torch.empty_like(x_BTD, memory_format=torch.contiguous_format)
        chunked = (x.flatten(0, 1).split(chunk_rows) for x in (x_BTD, y_BTD))
        for number, (x, y) in enumerate(zip(*chunked, strict=True)):
            y[:] = chunk(number, x[None])[0]
        return y_BTD

    def embed_tokens(self, ids_BT: Tensor, table_VD: Any, scale: float) -> Tensor:
        return F.embedding(ids_BT, table_VD).to(self._residual_dtype) * scale

    def add_positions(self, x_BTD: Tensor, start: int) -> Tensor:
        with torch.no_grad():
            positions_1TD = super().add_positions(x_BTD.new_zeros(1, *x_BTD.shape[1:]), start)
        return dropped(x_BTD + positions_1TD, self.rates.dropout)

    def layer_norm(self, x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x_BTD, weight_D.shape, weight_D, bias_D, eps).to(self._compute_dtype)

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        y: Tensor = Linear.apply(x, weight, bias, self._compute_dtype, self._compute_dtype)
        return y

    def linear_full_precision(self, x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
        y: Tensor = Linear.apply(x, weight, bias, self._compute_dtype, self._residual_dtype)
        return y

    def activation(self, x: Tensor, name: str) -> Tensor:
        return dropped(super().activation(x, name), self.rates.activation_dropout)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + dropped(y, self.rates.dropout)

    def workspace(self) -> AbstractContextManager[None]:
        return nullcontext()  # autograd keeps what it needs

    def lay_out(self, k_BHXF: Tensor, v_BHXF: Tensor) -> tuple[Tensor, Tensor]:
        return k_BHXF, v_BHXF  # read once

    def attention(self, q_BHLF: Tensor, k_BHXF: Tensor, v_BHXF: Tensor, visible: Tensor | None = None) -> Tensor:
        (B, _, L, _), X, rate = q_BHLF.shape, k_BHXF.shape[2], self.rates.attention_dropout
        if prefers_single_heads(q_BHLF, L * X, rate):
            masked = [None] * B if visible is None else (~visible).expand(B, -1, -1).numpy()
            groups = [[Group(slice(0, L), slice(None), mask)] for mask in masked]
            return self._grouped(groups, q_BHLF, k_BHXF, v_BHXF)[0]
        q_BHLF, k_BHXF, v_BHXF = map(float32_on_cpu, (q_BHLF, k_BHXF, v_BHXF))
        return attention_masked(q_BHLF, k_BHXF, v_BHXF, visible, rate).to(self._compute_dtype)

    def global_local_attention(
        self,
        q_BHTF: Tensor,
        k_BHTF: Tensor,
        v_BHTF: Tensor,
        global_q_BHGF: Tensor,
        global_k_BHGF: Tensor,
        global_v_BHGF: Tensor,
        key_mask_BT: Tensor | None,
        blocks: Blocks,
    ) -> tuple[Tensor, Tensor]:
        (B, _, T, _), G, rate = q_BHTF.shape, global_q_BHGF.shape[2], self.rates.attention_dropout
        size = max(stop - start for start, stop in blocks)
        qkv = (global_q_BHGF, q_BHTF, global_k_BHGF, k_BHTF, global_v_BHGF, v_BHTF)
        if prefers_single_heads(q_BHTF, max(G * (G + T), size * (G + size)), rate):
            masks = [None] * B if key_mask_BT is None else key_mask_BT.numpy()
            context_BHGF, context_BHTF = self._grouped([core_groups(G, T, blocks, mask) for mask in masks], *qkv)
        else:
            context_BHGF, context_BHTF = fused_attention(*qkv, key_mask_BT, blocks, rate)
        return context_BHTF, context_BHGF

    def cross_entropy(
        self, logits_BLV: Tensor, labels_BL: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
    ) -> Tensor:
        logits, labels = logits_BLV.flatten(0, 1), labels_BL.flatten()
        return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)

    def _grouped(self, groups: list[list[Group]], *qkv: Tensor) -> tuple[Tensor, ...]:
        rate = self.rates.attention_dropout
        dropout = Dropout(rate, new_seed() if rate else 0)
        contexts: tuple[Tensor, ...] = Attention.apply(groups, dropout, self._is_recomputing, *qkv)
        return contexts
