"""The paper's own checkpoints: a configuration for them, and their tensors in the layout of transformers."""

import warnings
from pathlib import Path

from pegasusx_ref.checkpoint.file_names import CONFIG
from pegasusx_ref.checkpoint.flax.names import flax_name, flax_shape, from_flax, implied_sizes
from pegasusx_ref.checkpoint.flax.reading import read_flax
from pegasusx_ref.conversion.checkpoint import Checkpoint
from pegasusx_ref.errors import CheckpointError, shown
from pegasusx_ref.files.json_files import read_json
from pegasusx_ref.files.reading import as_path, reading
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.model.config import PRESETS, PegasusXConfig
from pegasusx_ref.model.weights import parameter_shapes

EPS = 1e-12
# Of the published generation_config.json: Flax checkpoints have no settings.
PUBLISHED_SETTINGS = {"num_beams": 8, "length_penalty": 0.8}


def flax_checkpoint(path: Path, given: PegasusXConfig | str | Path | None) -> Checkpoint:
    """Read a Flax checkpoint and check that its parameters are those of a model, all of them.

    Args:
        path: the file.
        given: what the shapes of the parameters do not tell, see `convert`.

    Raises:
        CheckpointError: the file is missing or corrupt, or a parameter missing, surplus or misshapen.
        ConfigError: `given` is invalid.
    """
    config = _configuration(given)
    arrays = read_flax(path)
    with reading(path, "the parameters of PEGASUS-X", CheckpointError):
        config = config.replace(**implied_sizes(arrays), tie_word_embeddings=True)
        heads = {"encoder": config.encoder_attention_heads, "decoder": config.decoder_attention_heads}
        tensors = {}
        for name, shape in parameter_shapes(config).items():
            flax = flax_name(name)
            array, expected = arrays.pop(flax), flax_shape(flax, shape, heads.get(name.split(".")[0], 1))
            if array.shape != expected:
                raise ValueError(f"{shown(flax)} has shape {array.shape}, but the other ones imply {expected}")
            tensors[name] = from_flax(flax, array, shape)
        if arrays:
            raise ValueError(f"{shown(next(iter(arrays)))} is not part of this model, nor are {len(arrays) - 1} others")
    warnings.warn(
        f"{path}: config.json gets layer_norm_eps={config.layer_norm_eps:g}; transformers ignores that key and uses "
        "1e-05, which moves the encoder outputs of the base model by 2e-4",
        stacklevel=3,
    )
    generation = PUBLISHED_SETTINGS | {"max_length": config.max_position_embeddings}
    return Checkpoint(config, tensors, GenerationConfig.from_model_config(config).to_dict() | generation)


def _configuration(given: PegasusXConfig | str | Path | None) -> PegasusXConfig:
    if isinstance(given, PegasusXConfig):
        config = given
    elif given is None or str(given) in PRESETS:
        config = PegasusXConfig.preset("base" if given is None else str(given)).replace(layer_norm_eps=EPS)
    else:
        path = as_path(given)
        path = path / CONFIG if path.is_dir() else path
        with reading(path, "a configuration", CheckpointError, f"pass a config.json, or one of {', '.join(PRESETS)}"):
            config = PegasusXConfig.from_dict({"layer_norm_eps": EPS, **read_json(path)})
    if config.activation_function == "gelu":
        warnings.warn('"gelu" of Flax is the tanh approximation: config.json gets gelu_new', stacklevel=4)
        config = config.replace(activation_function="gelu_new")
    return config
