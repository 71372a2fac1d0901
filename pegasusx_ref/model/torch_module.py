"""The model as a torch module that trains: the same functions, over operations that torch differentiates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pegasusx_torch.training import Rates, TiedTable, TrainingBackend
from torch import Tensor, nn
from torch.nn import functional as F

from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.checkpoint import PREFIX
from pegasusx_ref.checkpoint.tensor_names import HEAD_PARTS
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.golden.head import IGNORED_LABEL, shift_tokens_right
from pegasusx_ref.model import inputs
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.decoder import decoder, decoder_layer
from pegasusx_ref.model.encoder import Encoded, encoder, encoder_layer
from pegasusx_ref.model.forward import check_labels, check_source, visible_targets
from pegasusx_ref.model.inputs import check_label_shape
from pegasusx_ref.model.layers import embed, embedding_scale, lm_head
from pegasusx_ref.model.outputs import ModelOutput
from pegasusx_ref.model.pegasus_x import PegasusXForConditionalGeneration
from pegasusx_ref.model.weights import (
    EMBEDDING,
    EMBEDDING_COPIES,
    LOGITS_BIAS,
    Weights,
    parameter_shapes,
    tie_embeddings,
)

TARGETS_AT_ONCE = 1024  # target tokens whose logits exist at the same time, where the loss alone is returned


@dataclass(eq=False)
class TrainingOutput(ModelOutput):
    """The output of `PegasusXTorchModule`, also by position among the fields that are not None.

    Attributes:
        loss: mean cross-entropy per label in nats, if labels were passed.
        logits: (B, L, V); None in training with labels, where they would take more memory than the layers.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class PegasusXTorchModule(nn.Module):
    """PEGASUS-X for training with torch: float32 parameters under transformers' names. [spec 19.26]

    Every layer keeps its inputs alone and is computed again in the backward pass, so that long inputs fit into memory;
    `activation_checkpointing_disable` makes it keep everything. In training mode there is dropout as configured. A bias
    of the logits does not train, as in transformers.

    Args:
        config: the model's configuration.
        tensors: weights by name, without the ``model.`` prefix and without tied copies; they are copied.
        device: see `TorchBackend`.
        dtype: of the operands of products; with "float64" parameters are float64 too.
        generation_config: of the models that `to_model` returns.

    Raises:
        BackendError: the device is not available.
        InputError: a tensor is missing, unknown or of another shape.
    """

    def __init__(
        self,
        config: PegasusXConfig,
        tensors: Mapping[str, np.ndarray],
        device: Any = None,
        dtype: str = "float32",
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__()
        # The Trainer of transformers would write into an attribute of the name config.
        self.model_config, self.generation_config = config, generation_config
        rates = Rates(config.dropout, config.attention_dropout, config.activation_dropout)
        self.ops = TrainingBackend(device, dtype, rates)
        parameter_dtype = "float64" if dtype == "float64" else "float32"
        for name, array in inputs.weights(tensors, parameter_shapes(config)).items():
            *places, last = full_name(name).split(".")
            module: nn.Module = self
            for place in places:
                if place not in module._modules:
                    module.add_module(place, nn.Module())
                module = module.get_submodule(place)
            tensor = torch.from_numpy(np.array(array, dtype=parameter_dtype)).to(self.ops.device)
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=name != LOGITS_BIAS))

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        labels: Any = None,
        smoothing: float = 0.0,
        encoder_outputs: Encoded | None = None,
    ) -> TrainingOutput:
        """Compute the loss, or the logits.

        Args:
            input_ids: source token ids (B, T).
            attention_mask: 1 for a source token, 0 for padding (B, T); all tokens where None.
            decoder_input_ids: target token ids (B, L); made from labels where None.
            decoder_attention_mask: 1 for a target token, 0 for padding (B, L).
            labels: token ids to score (B, L), -100 where no loss is taken.
            smoothing: the label smoothing, a probability that is spread over all tokens of the vocabulary, from 0 to 1.
                The Trainer of transformers takes every argument with "label" in its name for labels.
            encoder_outputs: the result of `encode`, instead of input_ids and attention_mask.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.
        """
        ops, config, labels_BL = self.ops, self.model_config, None
        smoothing = inputs.label_smoothing(smoothing)
        if labels is not None:
            labels_BL, decoder_input_ids = check_labels(config, labels, decoder_input_ids)
        inputs.exactly_one(decoder_input_ids=decoder_input_ids)
        ids_BL = inputs.token_ids("decoder_input_ids", decoder_input_ids, config.vocab_size)
        B, L = ids_BL.shape
        check_label_shape(labels_BL, (B, L))
        visible = visible_targets(ops, decoder_attention_mask, B, L, 0)
        inputs.exactly_one(input_ids=input_ids, encoder_outputs=encoder_outputs)
        if encoder_outputs is None:
            source = check_source(ops, config, input_ids, attention_mask, None)
            inputs.same_batch(encoder=source.tokens.shape[0], decoder=B)
            weights, x_BTD, x_BLD = self._embedded(encoder=source.tokens, decoder=ops.asarray(ids_BL))
            encoded = self._encoded(weights, x_BTD, source.mask_BT)
        else:
            if not isinstance(encoder_outputs, Encoded):
                kind = type(encoder_outputs).__name__
                raise InputError(f"encoder_outputs has type {kind}: pass the result of this module's encode()")
            encoded = encoder_outputs
            inputs.same_batch(encoder=encoded.tokens_BTD.shape[0], decoder=B)
            weights, x_BLD = self._embedded(decoder=ops.asarray(ids_BL))

        ops.is_training = self.training
        hidden_BLD, _ = decoder(
            ops,
            weights.at("decoder"),
            config,
            embed(ops, weights, config, "decoder", x_BLD, 0),
            visible,
            encoded.tokens_BTD,
            encoded.mask_BT,
            None,
            ops.recomputed(decoder_layer),
        )
        if labels_BL is None:
            return TrainingOutput(logits=lm_head(ops, weights, hidden_BLD))
        labels_1N, hidden_1ND = ops.asarray(labels_BL).view(1, -1), hidden_BLD.flatten(0, 1)[None]
        if self.training:
            return TrainingOutput(loss=self._loss(weights, hidden_1ND, labels_1N, smoothing))
        logits_1NV = lm_head(ops, weights, hidden_1ND)
        return TrainingOutput(ops.cross_entropy(logits_1NV, labels_1N, smoothing), logits_1NV.view(B, L, -1))

    def encode(self, input_ids: Any, attention_mask: Any = None) -> Encoded:
        """Run the encoder, for several targets of the same sources.

        Args:
            input_ids: source token ids (B, T).
            attention_mask: 1 for a source token, 0 for padding (B, T); all tokens where None.

        Raises:
            InputError: arguments that the model cannot take.
        """
        source = check_source(self.ops, self.model_config, input_ids, attention_mask, None)
        weights, x_BTD = self._embedded(encoder=source.tokens)
        return self._encoded(weights, x_BTD, source.mask_BT)

    def _encoded(self, weights: Weights, x_BTD: Tensor, mask_BT: Tensor | None) -> Encoded:
        """Add positions to embeddings and run the layers."""
        ops, config = self.ops, self.model_config
        ops.is_training = self.training
        x_BTD = embed(ops, weights, config, "encoder", x_BTD, 0)
        layer = ops.recomputed(encoder_layer)
        return Encoded(*encoder(ops, weights.at("encoder"), config, x_BTD, mask_BT, layer), mask_BT)

    def _embedded(self, **ids: Tensor) -> tuple[Any, ...]:
        """Return the parameters as the model's functions take them, and scaled embeddings of each side's ids."""
        config = self.model_config
        tensors = {short_name(name): parameter for name, parameter in self.named_parameters()}
        if config.tie_word_embeddings:
            tensors[EMBEDDING], *embedded = TiedTable.apply(tensors[EMBEDDING], config.pad_token_id, *ids.values())
        else:
            tables = {side: tensors[f"{side}.embed_tokens.weight"] for side in ids}
            embedded = [F.embedding(ids[side], table, config.pad_token_id) for side, table in tables.items()]
        scale = embedding_scale(config)
        return Weights(tie_embeddings(tensors)), *(x * scale for x in embedded)

    def _loss(self, weights: Weights, hidden_1ND: Tensor, labels_1N: Tensor, label_smoothing: float) -> Tensor:
        """Compute the loss in chunks of target tokens, each of which makes its logits again in the backward pass."""

        def total(ops: Any, weights: Weights, config: Any, hidden_1SD: Tensor, labels_1S: Tensor) -> tuple[Tensor]:
            loss = ops.cross_entropy(lm_head(ops, weights, hidden_1SD), labels_1S, label_smoothing, reduction="sum")
            return (loss,)

        head = Weights({name: tensor for name, tensor in weights.items() if name.startswith(HEAD_PARTS)})
        is_long = hidden_1ND.shape[1] > TARGETS_AT_ONCE
        compute = self.ops.recomputed(total) if is_long else total
        chunks = (x.split(TARGETS_AT_ONCE, dim=1) for x in (hidden_1ND, labels_1N))
        losses = [compute(self.ops, head, self.model_config, *chunk)[0] for chunk in zip(*chunks, strict=True)]
        return torch.stack(losses).sum() / (labels_1N != IGNORED_LABEL).sum()

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Any = None, every_n_layers: int = 1, offload: bool = False
    ) -> None:
        """Keep the inputs of layers alone, and compute layers again in the backward pass: the default.

        Args:
            activation_checkpointing_kwargs: accepted for the Trainer of transformers.
            every_n_layers: 1.
            offload: False.

        Raises:
            InputError: another value of the last two.
        """
        if every_n_layers != 1 or offload:
            raise InputError(
                f"every_n_layers={shown(every_n_layers)}, offload={shown(offload)}: every layer is computed again, and "
                "its inputs stay on the device: omit both"
            )
        self.ops.recomputes = True

    def activation_checkpointing_disable(self) -> None:
        """Keep every tensor that the backward pass needs: a quarter faster, where the memory suffices."""
        self.ops.recomputes = False

    # The names in transformers before 5.23.
    gradient_checkpointing_enable, gradient_checkpointing_disable = (
        activation_checkpointing_enable,
        activation_checkpointing_disable,
    )

    def set_dropout(
        self, dropout: float = 0.0, attention_dropout: float = 0.0, activation_dropout: float = 0.0
    ) -> None:
        """Change the rates of dropout from those of the configuration.

        Args:
            dropout: of embeddings and of updates of the residual stream, from 0 to 1.
            attention_dropout: of attention probabilities.
            activation_dropout: after the activation.

        Raises:
            ConfigError: a rate is not a probability.
        """
        rates = {"dropout": dropout, "attention_dropout": attention_dropout, "activation_dropout": activation_dropout}
        self.model_config.replace(**rates)  # checks them
        self.ops.configured_rates = Rates(**rates)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return the decoder's input for labels (B, L), for the data collators of transformers."""
        ids = shift_tokens_right(
            labels.cpu().numpy(), self.model_config.pad_token_id, self.model_config.decoder_start_token_id
        )
        return torch.from_numpy(ids).to(labels.device)

    def to_model(self, dtype: Any = "float32") -> PegasusXForConditionalGeneration:
        """Copy the parameters to a model on torch's backend, to generate with it or to save it.

        Args:
            dtype: that it computes in.
        """
        tensors = {short_name(name): p.detach().cpu().clone().numpy() for name, p in self.named_parameters()}
        ops = get_backend("torch", device=self.ops.device, dtype=dtype)
        return PegasusXForConditionalGeneration(self.model_config, tensors, ops, self.generation_config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a checkpoint in float32 that transformers and this package load; see the model's method."""
        self.to_model("float64" if self.ops.dtype == "float64" else "float32").save_pretrained(folder)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load parameters, also those of transformers' model: its tied copies are left out.

        Args:
            state_dict: tensors by name.
            strict: see torch.
            assign: see torch.
        """
        own, copies = self.state_dict().keys(), {full_name(name) for name in EMBEDDING_COPIES}
        kept = {name: tensor for name, tensor in state_dict.items() if name in own or name not in copies}
        return super().load_state_dict(kept, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device; parameters keep their dtype."""
        parameter = next(self.parameters())
        changed = fn(parameter.detach()[:0])
        if changed.dtype != parameter.dtype:
            raise InputError(
                f"parameters stay in {str(parameter.dtype).removeprefix('torch.')}: pass dtype= to to_torch_module or "
                "from_pretrained, to compute in half precision"
            )
        module: Self = super()._apply(fn, recurse)
        self.ops = self.ops.on(changed.device)
        return module


def full_name(name: str) -> str:
    """Return transformers' name of a parameter."""
    return name if name.startswith(HEAD_PARTS) else PREFIX + name


def short_name(name: str) -> str:
    """Return the model's name of a parameter."""
    return name.removeprefix(PREFIX)
