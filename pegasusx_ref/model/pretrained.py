"""The base of both public models: a configuration, weights on a backend, loading and saving."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack

import numpy as np

from pegasusx_ref.backend import Backend, QuantizedMatrix
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.backend.registry import declared_dtypes, dtype_name, get_backend
from pegasusx_ref.checkpoint import PREFIX, write_checkpoint
from pegasusx_ref.checkpoint.bitsandbytes import form_of
from pegasusx_ref.checkpoint.file_names import CONFIG, GENERATION
from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.checkpoint.location import locate
from pegasusx_ref.errors import BackendError, InputError
from pegasusx_ref.files.reading import as_path
from pegasusx_ref.generation.config import GenerationConfig
from pegasusx_ref.model import inputs
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.model.forward import check_source, encode, wanted_outputs
from pegasusx_ref.model.loading import load_weights
from pegasusx_ref.model.module_methods import ModuleMethods
from pegasusx_ref.model.outputs import EncoderOutput
from pegasusx_ref.model.quantization import Quantization, compute_dtype, quantization_entries, quantize_weights
from pegasusx_ref.model.weights import LOGITS_BIAS, Weights, parameter_shapes, random_weights, tie_embeddings

if TYPE_CHECKING:
    from pegasusx_ref.model.torch_module import PegasusXTorchModule


class PegasusXPreTrainedModel(ModuleMethods):
    """A configuration, a backend, and the weights on it.

    Threads may share a model and the outputs of its calls, caches included. [spec 15] A model can be pickled, as for
    worker processes, and is then loaded onto a device of the same name.

    Args:
        config: the model's configuration.
        tensors: weights by name, without the ``model.`` prefix and without tied copies, in any floating-point dtype or
            quantized. Tensors already in the compute dtype are not copied and must not be modified afterwards.
        ops: the backend, which stores the weights in its compute dtype.
        generation_config: defaults of `generate`; taken from the configuration if None.
    """

    has_head: ClassVar[bool]

    def __init__(
        self,
        config: PegasusXConfig,
        tensors: Mapping[str, np.ndarray | QuantizedMatrix],
        ops: Backend,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        self.config = config
        self.generation_config = generation_config or GenerationConfig.from_model_config(config)
        checked = inputs.weights(tensors, parameter_shapes(config, self.has_head))
        has_quantized = any(isinstance(tensor, QuantizedMatrix) for tensor in checked.values())
        self.ops = ops = ops.for_quantized_model() if has_quantized else ops
        self._tensors = {
            name: ops.quantized(tensor) if isinstance(tensor, QuantizedMatrix) else ops.asarray(tensor)
            for name, tensor in checked.items()
        }
        self.weights = Weights(tie_embeddings(self._tensors))

    def __repr__(self) -> str:
        config = self.config
        kinds = {tensor.kind for tensor in self._tensors.values() if isinstance(tensor, QuantizedMatrix)}
        weights = "".join(f", weights in {kind}" for kind in sorted(kinds))
        return (
            f"<{type(self).__name__} {config.encoder_layers}+{config.decoder_layers} layers, d_model={config.d_model}, "
            f"{self.num_parameters():,} parameters, {self.ops.name} {self.dtype} on {self.device}{weights}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        tensors = {name: self._stored(name) for name in self._tensors}
        return type(self), (self.config, tensors, self.ops, self.generation_config)

    @property
    def dtype(self) -> str:
        """The compute dtype."""
        return self.ops.dtype

    @property
    def device(self) -> str:
        """The device, such as "cpu" or "cuda:0"."""
        return self.ops.device

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        backend: str = "numpy",
        device: str | int | None = None,
        dtype: Any = None,
        *,
        torch_dtype: Any = None,
        device_map: str | None = None,
        quantization: str | None = None,
        quantize_embedding: bool = False,
        quantization_config: Any = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        trainable: bool = False,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Load a checkpoint as written by transformers.

        A quantized checkpoint stays quantized. Another one is quantized on request, one tensor after the other, from
        the numbers of the file: every linear layer of encoder and decoder.

        Args:
            name: a folder with config.json, the weights, and optionally generation_config.json; or the folder of a PEFT
                adapter, which is merged; or a name of the Hugging Face Hub, such as "google/pegasus-x-base". A local
                folder of that name wins.
            backend: one of `available_backends()`.
            device: "cpu", "cuda:0", or a number among the backend's devices; None, "auto" and 0 are its first one.
            dtype: "float32" if None; "auto" for the checkpoint's own; a NumPy or torch dtype is accepted too.
            torch_dtype: the older spelling of `dtype`.
            device_map: the documentation's spelling of `device`, "auto" in particular.
            quantization: "nf4", "nf4-double", "fp4", "fp4-double" or "int8".
            quantize_embedding: quantize the embedding tables too.
            quantization_config: the documentation's spelling of `quantization`: a `BitsAndBytesConfig`, also that of
                transformers, or its dictionary. Its bnb_4bit_compute_dtype is used where no `dtype` is given. Half
                precision is only preferred then: a backend without it computes in float32, with a warning.
            load_in_4bit: an older spelling of `quantization_config`; it means "fp4".
            load_in_8bit: likewise "int8".
            trainable: return a torch module that trains, of backend "torch" (`to_torch_module`): its parameters are
                float32 whatever the file's dtype and `dtype`, which is that of the operands of products.
            hub: revision, cache_dir, token and local_files_only, for a name of the Hub; see `HubOptions`.

        Raises:
            CheckpointError: the folder or a file in it is missing, corrupt, belongs to another model, or is quantized
                otherwise; or a number that is quantized is not finite.
            ConfigError: config.json does not describe a valid PEGASUS-X model.
            InputError: an unknown quantization, or two spellings of one argument.
            BackendError: the backend, the device or the dtype is not available.
        """
        dtype = inputs.either_spelling(dtype=dtype, torch_dtype=torch_dtype)
        device = inputs.either_spelling(device=device, device_map=device_map)
        requested = Quantization.requested(
            quantization, quantize_embedding, quantization_config, load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit
        )
        folder, adapter = locate(name, "model", hub)
        config = PegasusXConfig.from_pretrained(folder)
        ops = _backend(backend, device, dtype, config, requested)
        tensors, config = load_weights(folder, config, cls.has_head, adapter)
        tensors = quantize_weights(tensors, requested, cls.has_head, folder)
        generation_config = GenerationConfig.from_pretrained(folder, config)
        if inputs.flag("trainable", trainable):
            # `to_torch_module` has the type of a module; here the argument decides.
            return cls._torch_module(config, tensors, ops, generation_config)
        return cls(config, tensors, ops, generation_config)

    @classmethod
    def _torch_module(
        cls, config: PegasusXConfig, tensors: Mapping[str, Any], ops: Backend, generation_config: GenerationConfig
    ) -> "PegasusXTorchModule":
        """Create a torch module that trains."""
        if not cls.has_head:
            raise InputError("PegasusXModel has no loss: train PegasusXForConditionalGeneration")
        if ops.name != "torch":
            raise BackendError(f"backend {ops.name!r} does not train: pass backend='torch'")
        if any(isinstance(tensor, QuantizedMatrix) for tensor in tensors.values()):
            raise InputError("quantized weights do not train: load the model without quantization")
        from pegasusx_ref.model.torch_module import PegasusXTorchModule

        return PegasusXTorchModule(config, tensors, ops.device, ops.dtype, generation_config)

    @classmethod
    def from_random(
        cls,
        config: PegasusXConfig,
        seed: int = 0,
        backend: str = "numpy",
        device: str | int | None = None,
        dtype: Any = None,
    ) -> Self:
        """Create a model with random weights, which depend on the seed only, not on backend or dtype.

        Args:
            config: the model's configuration.
            seed: 0 or more.
            backend: one of `available_backends()`.
            device: see `from_pretrained`.
            dtype: see `from_pretrained`.

        Raises:
            BackendError: the backend, the device or the dtype is not available.
            InputError: a seed below 0.
            ConfigError: the weights are larger than this machine's memory.
        """
        ops = _backend(backend, device, dtype, config)
        return cls(config, random_weights(config, inputs.random_seed(seed) or 0, cls.has_head), ops)

    def encode(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        inputs_embeds: Any = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Run the encoder alone, for `encoder_outputs=` of later calls.

        Args:
            input_ids: token ids (B, T), an array or lists.
            attention_mask: 1 for a token, 0 for padding (B, T); all tokens where None.
            inputs_embeds: scaled token embeddings without positions (B, T, D), instead of input_ids.
            output_hidden_states: whether to return the input of every layer too.
            output_attentions: whether to return the attention probabilities too.

        Raises:
            InputError: ids, mask or embeddings that the model cannot take.
        """
        source = check_source(self.ops, self.config, input_ids, attention_mask, inputs_embeds)
        wanted = wanted_outputs(output_hidden_states, output_attentions)
        return encode(self.ops, self.weights, self.config, source, wanted)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, generation_config.json and model.safetensors, which transformers loads bit for bit.

        Quantized weights are written as bitsandbytes stores them; transformers does not read a quantized embedding.

        Args:
            folder: created if it does not exist; may be the folder that the model was loaded from.

        Raises:
            OutputError: a file cannot be written; the folder keeps its old files.
        """
        forms = {name: form_of(tensor, self._stored_dtype(name)) for name, tensor in self._tensors.items()}
        kinds = {name: form.kind for name, form in forms.items()}
        quantization = quantization_entries(kinds, self.dtype, self.has_head)
        settings = {CONFIG: self.config.entries_beside(self.dtype, type(self).__name__, quantization)}
        if self.has_head:
            settings[GENERATION] = self.generation_config.to_dict()
        write_checkpoint(
            as_path(folder),
            forms,
            self._stored,
            PREFIX if self.has_head else "",
            settings,
        )

    def _stored_dtype(self, name: str) -> str:
        """Return the dtype of a tensor in a file: a backend in half precision keeps only matrices in it."""
        tensor = self._tensors[name]
        if isinstance(tensor, QuantizedMatrix):
            return compute_dtype(self.dtype)
        return self.dtype if len(tensor.shape) > 1 else self.ops.to_numpy(tensor).dtype.name

    def _stored(self, name: str) -> Any:
        """Return a tensor as it is stored in a file, a quantized one on the host."""
        tensor = self._tensors[name]
        if isinstance(tensor, QuantizedMatrix):
            return tensor.map(self.ops.to_numpy)
        return self.ops.to_numpy(tensor).astype(numpy_dtype(self._stored_dtype(name)), copy=False)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return all weights as NumPy arrays by name, without the ``model.`` prefix and without tied copies.

        They may be the model's own arrays: copy one before modifying it. Quantized ones are dequantized, in float32.
        """
        return {
            name: self._stored(name).dequantized() if isinstance(tensor, QuantizedMatrix) else self.ops.to_numpy(tensor)
            for name, tensor in self._tensors.items()
        }

    def num_parameters(self) -> int:
        """Count the parameters, tied ones once, without a bias of the logits."""
        return sum(int(np.prod(tensor.shape)) for name, tensor in self._tensors.items() if name != LOGITS_BIAS)


def _backend(
    name: str, device: str | int | None, dtype: Any, config: PegasusXConfig, quantization: Quantization | None = None
) -> Backend:
    if isinstance(dtype, str) and dtype == "auto":
        dtype = config.dtype
    if dtype is None and quantization is not None:
        dtype = quantization.compute_dtype
    dtype = "float32" if dtype is None else dtype
    is_exact = quantization is None or not quantization.may_use_float32
    if is_exact or dtype_name(dtype) not in ("bfloat16", "float16") or dtype_name(dtype) in declared_dtypes(name):
        return get_backend(name, device=device, dtype=dtype)
    ops = get_backend(name, device=device, dtype="float32")
    warnings.warn(
        f"backend {name!r} does not compute in {dtype_name(dtype)}: the quantized model computes in float32",
        stacklevel=3,
    )
    return ops
