"""Flax checkpoints without Flax: the bytes of flax.serialization by msgpack, and the paper's names written out."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from pegasusx_ref import PegasusXConfig

Arrays = dict[str, np.ndarray[Any, Any]]


def extension(array: np.ndarray[Any, Any]) -> msgpack.ExtType:
    """An array as flax.serialization writes it."""
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def chunked(array: np.ndarray[Any, Any], size: int = 100) -> dict[str, Any]:
    """An array of more than 2**30 bytes as flax.serialization writes it, with smaller chunks."""
    flat = array.reshape(-1)
    chunks = [flat[start : start + size] for start in range(0, len(flat), size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(array.shape)},
        "chunks": {str(i): extension(chunk) for i, chunk in enumerate(chunks)},
    }


def nested(arrays: Arrays, pack: Any = extension) -> dict[str, Any]:
    """Flax's tree of dictionaries, by names with "/"."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *modules, last = name.split("/")
        place = tree
        for module in modules:
            place = place.setdefault(module, {})
        place[last] = pack(array)
    return tree


def write(path: Path, tree: Any) -> Path:
    path.write_bytes(msgpack.packb(tree, strict_types=True))
    return path


def flax_arrays(config: PegasusXConfig, dtype: str = "float32") -> Arrays:
    """Random parameters with the names and shapes of the paper's modules."""
    rng = np.random.default_rng(17)
    D, G = config.d_model, config.num_global_tokens
    shapes: dict[str, tuple[int, ...]] = {"shared_embedding/embedding": (config.vocab_size, D)}

    def norm(name: str) -> None:
        shapes.update({f"{name}/scale": (D,), f"{name}/bias": (D,)})

    def attention(name: str, H: int) -> None:
        shapes.update({f"{name}/{x}/kernel": (D, H, D // H) for x in ("query", "key", "value")})
        shapes[f"{name}/out/kernel"] = (H, D // H, D)

    def mlp(name: str, M: int) -> None:
        shapes.update({f"{name}/MlpBlock_0/Dense_0/kernel": (D, M), f"{name}/MlpBlock_0/Dense_0/bias": (M,)})
        shapes.update({f"{name}/MlpBlock_0/Dense_1/kernel": (M, D), f"{name}/MlpBlock_0/Dense_1/bias": (D,)})

    shapes["encoder/Embed_0/embedding"] = (G, D)
    for i in range(config.encoder_layers):
        block = f"encoder/encoderblock_{i}"
        attention(f"{block}/GlobalLocalSelfAttention_0", config.encoder_attention_heads)
        mlp(block, config.encoder_ffn_dim)
        for j in range(3):
            norm(f"{block}/LayerNorm_{j}")
    norm("encoder/encoder_norm")
    for i in range(config.decoder_layers):
        block = f"decoder/encoderdecoderblock_{i}"
        attention(f"{block}/SelfAttention_0", config.decoder_attention_heads)
        attention(f"{block}/MultiHeadDotProductAttention_0", config.decoder_attention_heads)
        mlp(block, config.decoder_ffn_dim)
        for j in range(3):
            norm(f"{block}/LayerNorm_{j}")
    norm("decoder/encoderdecoder_norm")
    return {name: rng.standard_normal(shape).astype(dtype) * 0.5 for name, shape in shapes.items()}
