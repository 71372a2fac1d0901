"""One run of `generate`, after its arguments were checked: encode the source and search for its texts. [spec 12]"""

from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend import Backend
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.generation import Callbacks, GenerationConfig, SearchRecord, Streamer, search
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.decode_step import DynamicDecodeStep, StaticDecodeStep
from pegasusx_ref.model.forward import Source, check_source, encoder_output, run_encoder
from pegasusx_ref.model.outputs import GenerateOutput, WantedOutputs
from pegasusx_ref.model.step_outputs import RecordedSteps
from pegasusx_ref.model.weights import Weights
from pegasusx_ref.tracing import TRACE_POINTS, wanted

CACHES = ("dynamic", "static")


class GenerationRun(NamedTuple):
    """What a run needs. It can be repeated, with the same random numbers, to explain an error.

    Attributes:
        ops: the backend.
        weights: of the whole model.
        model_config: the model's configuration.
        source: the arguments of `check_source`: ids, mask, embeddings and encoder outputs.
        config: the settings.
        callbacks: functions of the caller.
        seed: of the random numbers.
    """

    ops: Backend
    weights: Weights
    model_config: PegasusXConfig
    source: tuple[Any, Any, Any, Any]
    config: GenerationConfig
    callbacks: Callbacks
    seed: int

    def check_source(self) -> Source:
        """Check the source and bring it to the device.

        Raises:
            InputError: arguments that the model cannot take, or that do not fit the settings.
        """
        source = check_source(self.ops, self.model_config, *self.source)
        if (size := self.config.encoder_no_repeat_ngram_size) and source.ids_BT is None:
            raise InputError(
                f"encoder_no_repeat_ngram_size={size} compares with the source: pass input_ids, or set it to 0"
            )
        return source

    @np.errstate(over="ignore", invalid="ignore")  # an overflow that matters is an error of the search
    def search(
        self, streamer: Streamer | None = None, is_static: bool = False, compiled: bool = False
    ) -> GenerateOutput:
        """Encode the source and search for its texts.

        Args:
            streamer: receives the tokens as they are chosen.
            is_static: whether the decoder's caches have a fixed size.
            compiled: whether the backend may compile the steps over such caches.
        """
        source, config = self.check_source(), self.config
        model, layers = (self.ops, self.weights, self.model_config), self.model_config.decoder_layers
        outputs = optional_outputs(config)
        fields: dict[str, Any] = {}
        with outputs.recording() as trace:
            encoded = run_encoder(*model, source)
        if any(outputs):
            output = encoder_output(self.ops, self.model_config, source, encoded, trace, outputs)
            fields["encoder_hidden_states"] = output.hidden_states if outputs.hidden_states else None
            fields["encoder_attentions"] = output.attentions if outputs.attentions else None
        source_ids = source.ids_BT
        del source, trace  # embeddings of a long input are large
        if is_static:
            next_logits: DynamicDecodeStep = StaticDecodeStep(*model, encoded, config.lengths()[1] - 1, compiled)
        else:
            next_logits = DynamicDecodeStep(*model, encoded)
        steps = RecordedSteps(next_logits, outputs, self.ops, layers) if any(outputs) else None
        record = SearchRecord(config.output_scores, config.output_logits) if config.return_dict_in_generate else None
        ids, scores = search(
            steps or next_logits,
            encoded.tokens_BTD.shape[0],
            config,
            source_ids,
            self.seed,
            streamer,
            self.ops,
            self.callbacks,
            record,
            next_logits.keep,
        )
        fields |= (record.fields() if record else {}) | (steps.fields() if steps else {})
        return GenerateOutput(sequences=ids, sequences_scores=scores, **fields)


def optional_outputs(config: GenerationConfig) -> WantedOutputs:
    """Return which optional outputs the settings ask for."""
    is_output = config.return_dict_in_generate
    return WantedOutputs(is_output and config.output_hidden_states, is_output and config.output_attentions)


def cache_kind(
    ops: Backend, model_config: PegasusXConfig, config: GenerationConfig, cache_implementation: str | None
) -> tuple[bool, bool]:
    """Decide whether the caches are static, and whether steps may be compiled: a listener needs tensors from inside.

    Args:
        ops: the backend.
        model_config: the model's configuration.
        config: the settings.
        cache_implementation: "dynamic", "static" or None.

    Raises:
        InputError: something else.
    """
    if not isinstance(cache_implementation, str | None) or cache_implementation not in (None, *CACHES):
        raise InputError(
            f"cache_implementation={shown(cache_implementation)} is unknown: pass one of {', '.join(CACHES)}"
        )
    if any(optional_outputs(config)):
        return False, False  # over static caches, attention has places for tokens that are still to come
    inside = [name for name in TRACE_POINTS if name.startswith("decoder.layer")]
    is_traced = any(wanted(name.format(i=i)) for name in inside for i in range(model_config.decoder_layers))
    if cache_implementation is None:
        return ops.compiles and not is_traced, not is_traced
    return cache_implementation == "static", not is_traced
