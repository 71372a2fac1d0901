"""The two models that users call: ids in, hidden states, logits or generated ids out."""

import inspect
import warnings
from secrets import randbits
from typing import TYPE_CHECKING, Any

import numpy as np

from pegasusx_ref.backend import QuantizedMatrix
from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.errors import InputError, NumericsError
from pegasusx_ref.generation import Callbacks, Streamer, check_streamer, settings_of_call
from pegasusx_ref.model import inputs
from pegasusx_ref.model.forward import check_labels, forward
from pegasusx_ref.model.generation_run import GenerationRun, cache_kind
from pegasusx_ref.model.kv_cache import DecoderCache
from pegasusx_ref.model.layers import lm_head
from pegasusx_ref.model.not_finite import explained
from pegasusx_ref.model.outputs import Seq2SeqLMOutput, Seq2SeqModelOutput
from pegasusx_ref.model.pretrained import PegasusXPreTrainedModel
from pegasusx_ref.tracing import tap

if TYPE_CHECKING:
    from pegasusx_ref.model.torch_module import PegasusXTorchModule


class PegasusXModel(PegasusXPreTrainedModel):
    """PEGASUS-X without a head: the decoder's hidden states are the result."""

    has_head = False

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        *,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> Seq2SeqModelOutput:
        """Run encoder and decoder.

        Args:
            input_ids: source token ids (B, T), an array or lists.
            attention_mask: 1 for a source token, 0 for padding (B, T); all tokens where None.
            decoder_input_ids: target token ids (B, L), the start token first; with past_key_values the new ones only.
            decoder_attention_mask: 1 for a target token, 0 for padding (B, past + L); all tokens where None.
            inputs_embeds: scaled source embeddings without positions (B, T, D), instead of input_ids.
            decoder_inputs_embeds: scaled target embeddings without positions (B, L, D), instead of decoder_input_ids.
            encoder_outputs: the output of `encode`, a tuple, or hidden states (B, T, D), instead of input_ids.
            past_key_values: the cache of an earlier call, for the target tokens before these.
            use_cache: whether to return past_key_values; the configuration's value where None.
            output_hidden_states: whether to return the input of every layer too.
            output_attentions: whether to return the attention probabilities too.
            return_dict: True or None; an output's `to_tuple` returns a tuple.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.

        Source: HF `PegasusXModel.forward`.
        """
        inputs.return_dict(return_dict)
        hidden_BLD, output = forward(
            self.ops,
            self.weights,
            self.config,
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return Seq2SeqModelOutput(last_hidden_state=self.ops.to_numpy(hidden_BLD), **output)


class PegasusXForConditionalGeneration(PegasusXPreTrainedModel):
    """PEGASUS-X with its language-model head: logits, loss, and `generate`."""

    has_head = True

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        *,
        labels: Any = None,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """Run encoder, decoder and head.

        Args:
            input_ids: see `PegasusXModel`.
            attention_mask: see `PegasusXModel`.
            decoder_input_ids: see `PegasusXModel`; made from labels where None.
            decoder_attention_mask: see `PegasusXModel`.
            labels: token ids to score (B, L), -100 where no loss is taken; padding counts unless it is -100.
            inputs_embeds: see `PegasusXModel`.
            decoder_inputs_embeds: see `PegasusXModel`.
            encoder_outputs: see `PegasusXModel`.
            past_key_values: see `PegasusXModel`.
            use_cache: see `PegasusXModel`; with labels False where None.
            output_hidden_states: see `PegasusXModel`.
            output_attentions: see `PegasusXModel`.
            return_dict: see `PegasusXModel`.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.

        Source: HF `PegasusXForConditionalGeneration.forward`.
        """
        inputs.return_dict(return_dict)
        if labels is not None:
            labels, shifted = check_labels(self.config, labels, decoder_input_ids)
            decoder_input_ids = shifted if decoder_inputs_embeds is None else decoder_input_ids
            use_cache = inputs.flag("use_cache", use_cache)
        hidden_BLD, output = forward(
            self.ops,
            self.weights,
            self.config,
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            labels=labels,
        )
        logits_BLV = tap("lm_head", lm_head(self.ops, self.weights, hidden_BLD))
        loss = None
        if labels is not None:
            loss = float(self.ops.cross_entropy(logits_BLV, self.ops.asarray(labels)))
        return Seq2SeqLMOutput(loss=loss, logits=self.ops.to_numpy(logits_BLV), **output)

    def loss_and_gradients(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        *,
        labels: Any,
        label_smoothing: float = 0.0,
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Compute the loss and its gradient by every parameter, with the golden functions. See spec 19.

        Listeners get the gradients of hidden states by the name of their trace point with ``.grad``.

        Args:
            input_ids: source token ids (B, T).
            attention_mask: 1 for a source token, 0 for padding (B, T); all tokens where None.
            decoder_input_ids: target token ids (B, L); made from labels where None.
            decoder_attention_mask: 1 for a target token, 0 for padding (B, L).
            labels: token ids to score (B, L), -100 where no loss is taken.
            label_smoothing: probability that is spread over all tokens of the vocabulary, from 0 to 1.

        Returns:
            The loss in nats a label; gradients by parameter name, in the model's dtype.

        Raises:
            InputError: arguments that the model cannot take, or a model in half precision or with quantized weights.
        """
        from pegasusx_ref.model.gradients import loss_and_gradients  # here: most users never need its files

        inputs.exactly_one(input_ids=input_ids)
        inputs.exactly_one(labels=labels)
        labels_BL, decoder_input_ids = check_labels(self.config, labels, decoder_input_ids)
        label_smoothing = inputs.label_smoothing(label_smoothing)
        if self.ops.dtype not in ("float32", "float64"):
            raise InputError(f"gradients need float32 or float64, not {self.ops.dtype}: load the model with dtype=")
        if any(isinstance(tensor, QuantizedMatrix) for tensor in self._tensors.values()):
            raise InputError("quantized weights have no gradients: load the model without quantization")
        batch = {
            "input_ids": inputs.token_ids("input_ids", input_ids, self.config.vocab_size),
            "attention_mask": attention_mask,
            "decoder_input_ids": inputs.token_ids("decoder_input_ids", decoder_input_ids, self.config.vocab_size),
            "decoder_attention_mask": decoder_attention_mask,
        }
        tensors = {name: self.ops.to_numpy(tensor) for name, tensor in self._tensors.items()}
        return loss_and_gradients(self.config, tensors, batch, labels_BL, label_smoothing)

    def to_torch_module(self, dtype: Any = None) -> "PegasusXTorchModule":
        """Copy the model to a torch module that trains. See spec 19.26.

        Args:
            dtype: of the operands of products; the model's where None. Parameters are float32, or float64.

        Raises:
            InputError: quantized weights.
            BackendError: torch is not installed, or does not compute in the dtype.
        """
        device = self.device if self.ops.name == "torch" else None
        ops = get_backend("torch", device=device, dtype=self.dtype if dtype is None else dtype)
        tensors = {name: self._stored(name) for name in self._tensors}
        return self._torch_module(self.config, tensors, ops, self.generation_config)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        inputs_embeds: Any = None,
        encoder_outputs: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        tokenizer: Any = None,
        seed: int | None = None,
        return_dict_in_generate: bool | None = None,
        streamer: Streamer | None = None,
        cache_implementation: str | None = None,
        **settings: Any,
    ) -> Any:
        """Generate a text for each source: greedily, by beam search, or by sampling.

        Args:
            input_ids: source token ids (B, T), an array or lists.
            attention_mask: 1 for a source token, 0 for padding (B, T); all tokens where None.
            inputs_embeds: see `PegasusXModel`.
            encoder_outputs: see `PegasusXModel`.
            generation_config: settings that replace the model's own: a `GenerationConfig`, also one of transformers, a
                dictionary, or a checkpoint folder. Only settings that were given count.
            logits_processor: functions (ids, scores) -> scores that change the scores of the next token (N, V). They
                get arrays of the backend, so with torch the processors of transformers qualify.
            stopping_criteria: functions (ids, None) that return True for texts that end (N,), likewise.
            prefix_allowed_tokens_fn: a function (number of the source, ids (n,)) that returns the ids that may follow;
                with several samples of a source it gets the number of the sample.
            tokenizer: the model's, for stop_strings.
            seed: of the random numbers; the same seed generates the same texts.
            return_dict_in_generate: return a `GenerateOutput` with the scores of the texts and of their tokens.
            streamer: has `put`, which gets the start tokens and then the newest token of every row (B R,), and `end`;
                transformers' streamers qualify. With one beam only.
            cache_implementation: "dynamic": caches grow with the text; "static": caches have a fixed size, doubled when
                they are full, so that the backend can compile the step; None: whichever is faster on the backend. The
                tokens are the same.
            settings: the attributes of `GenerationConfig`: max_new_tokens, num_beams, length_penalty, …; a setting that
                is missing or None is taken from generation_config, then from generation_config.json, without that file
                from config.json. Also `inputs`, another spelling of input_ids.

        Returns:
            int64 ids (B R, L), R = num_return_sequences, the start token first, rows that end early filled up.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit each other.
            ConfigError: an invalid setting, or one of transformers that is not supported.
            NumericsError: logits that are not finite; the message names the first token, the first layer, the remedy.
            TypeError: a name that is not a setting.
        """
        input_ids = inputs.either_spelling(input_ids=input_ids, inputs=settings.pop("inputs", None))
        if hasattr(attention_mask, "num_beams"):
            raise InputError("the second argument is a generation config, not attention_mask: pass generation_config=")
        if return_dict_in_generate is not None:
            settings["return_dict_in_generate"] = inputs.flag("return_dict_in_generate", return_dict_in_generate)
        arguments = set(inspect.signature(self.generate).parameters) - {"settings"}
        config, notes = settings_of_call(
            self.generation_config, generation_config, settings, arguments, self.config.vocab_size
        )
        if streamer is not None:
            check_streamer(streamer, config)
        callbacks = Callbacks.checked(config, logits_processor, stopping_criteria, prefix_allowed_tokens_fn, tokenizer)
        seed = inputs.random_seed(seed)
        seed = randbits(128) if seed is None else seed  # so that a run can be repeated to explain its error
        is_static, compiled = cache_kind(self.ops, self.config, config, cache_implementation)
        source = (input_ids, attention_mask, inputs_embeds, encoder_outputs)
        run = GenerationRun(self.ops, self.weights, self.config, source, config, callbacks, seed)
        run.check_source()
        for note in notes:
            warnings.warn(note, stacklevel=2)
        try:
            output = run.search(streamer, is_static, compiled)
        except NumericsError as error:
            raise explained(error, self.ops, self._tensors, run.search) from None
        return output if config.return_dict_in_generate else output.sequences
