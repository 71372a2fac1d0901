"""The configuration of a model: the entries of config.json. [spec 14]"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, Unpack

from pegasusx_ref.checkpoint.bitsandbytes import SETTINGS
from pegasusx_ref.checkpoint.file_names import CONFIG
from pegasusx_ref.checkpoint.hub import HubOptions
from pegasusx_ref.checkpoint.location import locate
from pegasusx_ref.checkpoint.plain import plain
from pegasusx_ref.checkpoint.settings import Limits, fields_and_extra, is_integer, read_settings
from pegasusx_ref.errors import ConfigError, shown
from pegasusx_ref.files.json_files import write_json
from pegasusx_ref.files.reading import as_path, reading
from pegasusx_ref.golden.feed_forward import ACTIVATIONS

MODEL_TYPE = "pegasus_x"

# Published values of google/pegasus-x-base and -large; tiny has the same structure at a size for reading and testing.
_PUBLISHED: dict[str, Any] = {"activation_function": "relu", "num_global_tokens": 128, "attention_dropout": 0.1,
                              "activation_dropout": 0.1}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "activation_function": "relu", "vocab_size": 256, "d_model": 32, "block_size": 8, "num_global_tokens": 4,
        "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
        "max_position_embeddings": 512, "init_std": 0.2,
    },
    "base": _PUBLISHED | {
        "d_model": 768,
        "encoder_layers": 12, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072,
        "decoder_layers": 12, "decoder_attention_heads": 12, "decoder_ffn_dim": 3072,
    },
    "large": _PUBLISHED,
}  # fmt: skip

_LAYERS = Limits(0, 512, "32 times those of the large model; all tensors are listed in one header")
_HEADS = Limits(1, 4096, "heads of 16 features at the largest d_model")
_FFN = Limits(1, 2**20, "16 times the largest d_model")
_PROBABILITY = Limits(0.0, 1.0, "a probability")
# The range of every number, wide enough for any model that fits a machine. [spec 14.1]
LIMITS: dict[str, Limits] = {
    "vocab_size": Limits(1, 2**24, "60 times the largest published vocabularies"),
    "max_position_embeddings": Limits(1, 2**31 - 1, "lengths are 32-bit integers in tokenizers"),
    "d_model": Limits(4, 2**16, "64 times that of the large model"),
    "encoder_layers": _LAYERS,
    "encoder_attention_heads": _HEADS,
    "encoder_ffn_dim": _FFN,
    "decoder_layers": _LAYERS,
    "decoder_attention_heads": _HEADS,
    "decoder_ffn_dim": _FFN,
    "num_global_tokens": Limits(1, 2**16, "512 times that of the published models"),
    "block_size": Limits(1, 2**20, "64 times the published input length"),
    "layer_norm_eps": Limits(1e-30, 1.0, "added to a variance; smaller values vanish in float32"),
    "init_std": Limits(1e-30, 1e4, "weights of float16 end at 65,504"),
    "dropout": _PROBABILITY,
    "attention_dropout": _PROBABILITY,
    "activation_dropout": _PROBABILITY,
}


@dataclass(frozen=True, kw_only=True)
class PegasusXConfig:
    """Every number that the architecture depends on, with the names of transformers' config.json. [spec 14.1]

    The defaults are those of transformers' `PegasusXConfig`, because config.json leaves out what equals them; the
    published checkpoints differ from them (`PegasusXConfig.preset("base")`). Keys of config.json that have no field
    here are kept in `extra` and written back. Numbers of NumPy and torch become numbers of Python.

    Raises:
        ConfigError: an invalid value, with the limit and the remedy.
    """

    vocab_size: int = 96103
    max_position_embeddings: int = 16384  # where the tokenizer truncates; positions themselves have no limit
    d_model: int = 1024
    encoder_layers: int = 16
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    decoder_layers: int = 16
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    num_global_tokens: int = 32
    block_size: int = 512
    stagger_local_blocks: bool = True
    activation_function: str = "gelu"
    layer_norm_eps: float = 1e-5  # not a key of transformers, where 1e-5 is fixed; the paper's Flax code uses 1e-12
    scale_embedding: bool = True
    tie_word_embeddings: bool = True
    init_std: float = 0.02
    use_cache: bool = True
    pad_token_id: int = 0  # null in a file: the first end token, as in generation with transformers
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int = 0  # null in a file: bos_token_id, likewise
    forced_eos_token_id: int | list[int] | None = 1
    # Dropout applies in training only; the values are preserved for further training.
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    dtype: str | None = None  # of the checkpoint's tensors
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if entry.name != "extra":
                object.__setattr__(self, entry.name, plain(getattr(self, entry.name)))
        if self.decoder_start_token_id is None and isinstance(self.extra, dict):
            object.__setattr__(self, "decoder_start_token_id", self.extra.get("bos_token_id"))
        if self.pad_token_id is None:
            ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
            object.__setattr__(self, "pad_token_id", next((i for i in ends if i is not None), 0))
        for name, limits in LIMITS.items():
            limits.check(name, getattr(self, name))
        for name in ("stagger_local_blocks", "scale_embedding", "tie_word_embeddings", "use_cache"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={shown(getattr(self, name))} must be true or false")
        if self.d_model % 2:
            raise ConfigError(
                f"d_model={self.d_model} must be even: half of the position features are sines, half cosines"
            )
        for side in ("encoder", "decoder"):
            heads = getattr(self, f"{side}_attention_heads")
            if self.d_model % heads:
                raise ConfigError(
                    f"d_model={self.d_model} is not divisible by {side}_attention_heads={heads}: "
                    f"choose a number of heads that divides {self.d_model}"
                )
        if self.stagger_local_blocks and self.block_size % 2:
            raise ConfigError(
                f"block_size={self.block_size} is odd: staggered layers need an even block_size "
                "(or stagger_local_blocks=false)"
            )
        if not isinstance(self.activation_function, str) or self.activation_function not in ACTIVATIONS:
            name = shown(self.activation_function)
            raise ConfigError(f"activation_function={name} is unknown: choose one of {', '.join(ACTIVATIONS)}")
        if not isinstance(self.extra, dict):
            raise ConfigError(f"extra={shown(self.extra)} must be a dictionary of other entries of config.json")
        if self.dtype is not None and not isinstance(self.dtype, str):
            raise ConfigError(f"dtype={shown(self.dtype)} must be a name such as 'float32'")
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
            self._check_token_ids(name)

    def _check_token_ids(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and "eos" in name:
            return
        listed = isinstance(value, list) and name in ("eos_token_id", "forced_eos_token_id")
        for token_id in (value or [None]) if listed else [value]:
            if not is_integer(token_id) or not 0 <= token_id < self.vocab_size:
                raise ConfigError(f"{name}={shown(value)} must be a token id in [0, vocab_size={self.vocab_size})")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return a predefined configuration: "tiny" for reading and testing, "base" and "large" as published.

        Args:
            name: "tiny", "base" or "large".
            changes: fields with other values.

        Raises:
            ConfigError: no such preset, or an invalid value among the changes.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError(f"preset {shown(name)} is unknown: choose one of {', '.join(PRESETS)}")
        return cls(**(PRESETS[name] | changes))

    def replace(self, **changes: Any) -> Self:
        """Copy the configuration with some fields changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read the entries of a config.json.

        Args:
            values: the entries; `torch_dtype` is read as `dtype`; entries without a field go to `extra`.

        Raises:
            ConfigError: the entries belong to another model, or one of them is invalid.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"entries={shown(values)} must be a dictionary, the content of config.json")
        values = dict(values)
        model_type = values.pop("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise ConfigError(
                f"model_type={shown(model_type)} is another architecture: this package runs {MODEL_TYPE!r} only"
            )
        # transformers 5 writes dtype, older versions torch_dtype.
        older_dtype = values.pop("torch_dtype", None)
        values["dtype"] = values.get("dtype") or older_dtype
        return cls(**fields_and_extra(cls, values))

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of a config.json that transformers reads."""
        values = dataclasses.asdict(self)
        extra: dict[str, Any] = values.pop("extra")
        if values["layer_norm_eps"] == 1e-5:
            del values["layer_norm_eps"]  # transformers has no such key
        if values["dtype"] is None:
            del values["dtype"]
        return extra | values | {"model_type": MODEL_TYPE, "is_encoder_decoder": True}

    def entries_beside(self, weights: str, architecture: str, quantization: dict[str, Any]) -> dict[str, Any]:
        """Return the entries of the config.json that is saved with weights.

        Args:
            weights: the dtype of their matrices.
            architecture: the name of the model's class.
            quantization: the entry of their quantization, which replaces that of earlier weights.
        """
        extra = {name: entry for name, entry in self.extra.items() if name != SETTINGS}
        return self.replace(dtype=weights, extra=extra | {"architectures": [architecture]} | quantization).to_dict()

    @classmethod
    def from_pretrained(cls, name: str | Path, **hub: Unpack[HubOptions]) -> Self:
        """Read the config.json of a checkpoint.

        Args:
            name: a folder, or a name of the Hugging Face Hub.
            hub: see `HubOptions`.

        Raises:
            CheckpointError: the file is missing or not JSON.
            ConfigError: it belongs to another model, or a value is invalid.
        """
        path = locate(name, "config", hub).folder / CONFIG
        values = read_settings(path)
        with reading(path, "a configuration", ConfigError):
            # An error that a server answered is a JSON object, too.
            if "model_type" not in values and values.keys().isdisjoint(f.name for f in dataclasses.fields(cls)):
                raise ConfigError("it has no entry of a PEGASUS-X configuration: download it again")
            return cls.from_dict(values)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `folder`/config.json; create the folder if it does not exist."""
        write_json(as_path(folder) / CONFIG, self.to_dict())
