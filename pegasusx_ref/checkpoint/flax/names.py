"""The names, shapes and layouts of the paper's Flax parameters, for those of this package. [spec 14]"""

import re
from collections.abc import Mapping

import numpy as np

from pegasusx_ref.errors import shown

BLOCK = {"encoder": "encoderblock", "decoder": "encoderdecoderblock"}
# Flax numbers the modules of one kind in a block in the order in which they are called.
MODULES = {
    "encoder": {
        "self_attn": "GlobalLocalSelfAttention_0",
        "self_attn_layer_norm": "LayerNorm_0",
        "global_self_attn_layer_norm": "LayerNorm_1",
        "final_layer_norm": "LayerNorm_2",
    },
    "decoder": {
        "self_attn": "SelfAttention_0",
        "self_attn_layer_norm": "LayerNorm_0",
        "encoder_attn": "MultiHeadDotProductAttention_0",
        "encoder_attn_layer_norm": "LayerNorm_1",
        "final_layer_norm": "LayerNorm_2",
    },
}
DENSE = {"fc1": "MlpBlock_0/Dense_0", "fc2": "MlpBlock_0/Dense_1"}
PROJECTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
NORM = {"weight": "scale", "bias": "bias"}
KERNEL = {"weight": "kernel", "bias": "bias"}


def flax_name(name: str) -> str:
    """Return the Flax name of a tensor.

    Args:
        name: of a tensor of a tied model, without the ``model.`` prefix.
    """
    match name.split("."):
        case ["shared", _]:
            return "shared_embedding/embedding"
        case [side, "embed_global", _]:
            return f"{side}/Embed_0/embedding"
        case [side, "layer_norm", kind]:
            return f"{side}/{BLOCK[side].removesuffix('block')}_norm/{NORM[kind]}"
        case [side, _, i, attention, projection, _]:
            return f"{side}/{BLOCK[side]}_{i}/{MODULES[side][attention]}/{PROJECTION[projection]}/kernel"
        case [side, _, i, module, kind] if module in DENSE:
            return f"{side}/{BLOCK[side]}_{i}/{DENSE[module]}/{KERNEL[kind]}"
        case [side, _, i, module, kind]:
            return f"{side}/{BLOCK[side]}_{i}/{MODULES[side][module]}/{NORM[kind]}"
    raise KeyError(name)


def flax_shape(name: str, shape: tuple[int, ...], num_heads: int) -> tuple[int, ...]:
    """Return the shape of a tensor in Flax.

    Args:
        name: its Flax name.
        shape: here, (out, in) for a matrix.
        num_heads: H of the encoder or the decoder that it belongs to.
    """
    if not name.endswith("/kernel"):
        return shape
    features = (num_heads, shape[0] // num_heads)
    if name.endswith(("/query/kernel", "/key/kernel", "/value/kernel")):
        return (shape[1], *features)
    return (*features, shape[0]) if name.endswith("/out/kernel") else shape[::-1]


def from_flax(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of Flax in the layout of this package, as a view.

    Args:
        name: its Flax name.
        array: in the shape of `flax_shape`.
        shape: of the tensor here.
    """
    return array.reshape(shape[::-1]).T if name.endswith("/kernel") else array


def implied_sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the fields of the configuration that the shapes of Flax parameters tell.

    Args:
        arrays: parameters by name.

    Raises:
        ValueError: a parameter of another shape.
        KeyError: a missing one.
    """

    def shape(name: str, num_axes: int) -> tuple[int, ...]:
        if arrays[name].ndim != num_axes:
            raise ValueError(f"{shown(name)} has shape {arrays[name].shape}, not {num_axes} axes")
        return arrays[name].shape

    vocab_size, d_model = shape("shared_embedding/embedding", 2)
    sizes = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "num_global_tokens": shape("encoder/Embed_0/embedding", 2)[0],
    }
    for side, block in BLOCK.items():
        layer = re.compile(rf"{side}/{block}_(\d{{1,9}})/.*", re.DOTALL)
        layers = {int(match[1]) for match in map(layer.fullmatch, arrays) if match}
        sizes[f"{side}_layers"] = max(layers, default=-1) + 1
        if layers:
            first = f"{side}/{block}_0"
            sizes[f"{side}_attention_heads"] = shape(f"{first}/{MODULES[side]['self_attn']}/query/kernel", 3)[1]
            sizes[f"{side}_ffn_dim"] = shape(f"{first}/{DENSE['fc1']}/kernel", 2)[1]
    return sizes
