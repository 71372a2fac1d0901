"""The weights of a model: their names and shapes, the view of one layer, random values. [spec 14]"""

import os
import zlib
from collections.abc import Iterator, Mapping
from math import inf, prod
from typing import Any

import numpy as np

from pegasusx_ref.errors import ConfigError
from pegasusx_ref.model.config import PegasusXConfig

# The embedding table is one tensor under four names unless config.tie_word_embeddings is false.
EMBEDDING = "shared.weight"
EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
GLOBAL_EMBEDDING = "encoder.embed_global.weight"  # a matrix that is never quantized
# A bias (V,) of the logits, which few checkpoints have; an entry of config.json with this name says that one is there.
LOGITS_BIAS = "final_logits_bias"


class Weights(Mapping[str, Any]):
    """Tensors by checkpoint name, relative to a prefix such as one layer's. [spec 14.2]

    ``weights.at("layers.0")["fc1.weight"]`` is the tensor ``layers.0.fc1.weight``.

    Args:
        tensors: every tensor by its full name.
        place: the dotted prefix.
    """

    def __init__(self, tensors: Mapping[str, Any], place: str = "") -> None:
        self._tensors = tensors
        self._prefix = f"{place}." if place else ""

    def at(self, place: str) -> "Weights":
        """Return the view with a longer prefix."""
        return Weights(self._tensors, self._prefix + place)

    def __getitem__(self, name: str) -> Any:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        n = len(self._prefix)
        return (name[n:] for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def parameter_shapes(config: PegasusXConfig, head: bool = True) -> dict[str, tuple[int, ...]]:
    """List every tensor of a checkpoint with its shape, without the tied copies. [spec 14.3]

    Args:
        config: the model's configuration.
        head: whether the model has a language-model head; a tied model's head is the embedding table.

    Returns:
        Shapes by name, without the ``model.`` prefix of `PegasusXForConditionalGeneration` checkpoints.

    Source: HF `PegasusXForConditionalGeneration.state_dict`.
    """
    D = config.d_model
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, D)}
    if not config.tie_word_embeddings:
        shapes |= dict.fromkeys(EMBEDDING_COPIES, (config.vocab_size, D))

    def layer_norm(place: str) -> None:
        shapes.update({f"{place}.weight": (D,), f"{place}.bias": (D,)})

    def attention(place: str) -> None:
        shapes.update({f"{place}.{x}_proj.weight": (D, D) for x in ("q", "k", "v", "out")})

    def feed_forward(place: str, M: int) -> None:
        shapes.update({f"{place}.fc1.weight": (M, D), f"{place}.fc1.bias": (M,)})
        shapes.update({f"{place}.fc2.weight": (D, M), f"{place}.fc2.bias": (D,)})
        layer_norm(f"{place}.final_layer_norm")

    shapes[GLOBAL_EMBEDDING] = (config.num_global_tokens, D)
    for i in range(config.encoder_layers):
        layer = f"encoder.layers.{i}"
        attention(f"{layer}.self_attn")
        layer_norm(f"{layer}.self_attn_layer_norm")
        layer_norm(f"{layer}.global_self_attn_layer_norm")
        feed_forward(layer, config.encoder_ffn_dim)
    layer_norm("encoder.layer_norm")

    for i in range(config.decoder_layers):
        layer = f"decoder.layers.{i}"
        for sublayer in ("self_attn", "encoder_attn"):
            attention(f"{layer}.{sublayer}")
            layer_norm(f"{layer}.{sublayer}_layer_norm")
        feed_forward(layer, config.decoder_ffn_dim)
    layer_norm("decoder.layer_norm")
    if has_logits_bias(config) and head:
        shapes[LOGITS_BIAS] = (config.vocab_size,)
    if not head:
        shapes.pop("lm_head.weight", None)
    return shapes


def has_logits_bias(config: PegasusXConfig) -> bool:
    """Return whether the model adds a bias to its logits."""
    return config.extra.get(LOGITS_BIAS) is True


def random_weights(config: PegasusXConfig, seed: int = 0, head: bool = True) -> dict[str, np.ndarray]:
    """Draw every tensor at random, reproducibly and independently of the others. [spec 14.4]

    Matrices, tables and biases are normal with standard deviation config.init_std, LayerNorm scales are 1 plus such a
    value: no tensor is constant, because zeros and ones would hide bugs.

    Args:
        config: the model's configuration.
        seed: 0 or more; a tensor depends only on the seed, its name and its shape.
        head: see `parameter_shapes`.

    Returns:
        float32 tensors by name, without the tied copies.

    Raises:
        ConfigError: they are larger than this machine's memory.
    """
    shapes, tensors = parameter_shapes(config, head), {}
    size, memory = 4 * sum(map(prod, shapes.values())), physical_memory()
    if size > memory:
        raise ConfigError(f"the weights take {size:,} bytes, but this machine has {memory:,}: choose smaller sizes")
    for name, shape in shapes.items():
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        tensor = generator.standard_normal(shape, dtype=np.float32) * np.float32(config.init_std)
        tensors[name] = 1 + tensor if name.endswith("norm.weight") else tensor
    return tensors


def physical_memory() -> float:
    """Return the bytes of this machine's memory, infinite where the system does not tell."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else inf


def tie_embeddings(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Add the missing names of the embedding table, which has four, as references to the same tensor. [spec 14.5]

    Args:
        tensors: tensors by name, with at least one of the four.
    """
    present = next(tensors[name] for name in (EMBEDDING, *EMBEDDING_COPIES) if name in tensors)
    return dict.fromkeys((EMBEDDING, *EMBEDDING_COPIES), present) | dict(tensors)
