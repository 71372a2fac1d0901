"""Every public trace point: its name and its shape. [spec 16]"""

import re

_QKV = ("q_proj", "k_proj", "v_proj")

# `{i}` counts layers, `{n}` the blocks of a layer. Letters as in spec/01-notation.md.
TRACE_POINTS: dict[str, str] = {
    "encoder.embed_tokens": "BTD",
    "encoder.embeddings": "BTD",
    "encoder.embed_global": "BGD",
    "encoder.layers.{i}.tokens.input": "BTD",
    "encoder.layers.{i}.globals.input": "BGD",
    "encoder.layers.{i}.tokens.self_attn_layer_norm": "BTD",
    "encoder.layers.{i}.globals.self_attn_layer_norm": "BGD",
    **{f"encoder.layers.{{i}}.self_attn.tokens.{name}": "BTD" for name in _QKV},
    **{f"encoder.layers.{{i}}.self_attn.globals.{name}": "BGD" for name in _QKV},
    "encoder.layers.{i}.self_attn.local.{n}.scores": "BHSX",
    "encoder.layers.{i}.self_attn.local.{n}.probs": "BHSX",
    "encoder.layers.{i}.self_attn.local.{n}.context": "BHSF",
    "encoder.layers.{i}.self_attn.global.scores": "BHGX",
    "encoder.layers.{i}.self_attn.global.probs": "BHGX",
    "encoder.layers.{i}.self_attn.global.context": "BHGF",
    "encoder.layers.{i}.self_attn.tokens.out_proj": "BTD",
    "encoder.layers.{i}.self_attn.globals.out_proj": "BGD",
    "encoder.layers.{i}.tokens.self_attn_residual": "BTD",
    "encoder.layers.{i}.tokens.final_layer_norm": "BTD",
    "encoder.layers.{i}.tokens.fc1": "BTM",
    "encoder.layers.{i}.tokens.activation": "BTM",
    "encoder.layers.{i}.tokens.fc2": "BTD",
    "encoder.layers.{i}.tokens.output": "BTD",
    "encoder.layers.{i}.globals.self_attn_residual": "BGD",
    "encoder.layers.{i}.globals.final_layer_norm": "BGD",
    "encoder.layers.{i}.globals.fc1": "BGM",
    "encoder.layers.{i}.globals.activation": "BGM",
    "encoder.layers.{i}.globals.fc2": "BGD",
    "encoder.layers.{i}.globals.output": "BGD",
    "encoder.layer_norm": "BTD",
    "decoder.embed_tokens": "BLD",
    "decoder.embeddings": "BLD",
    "decoder.layers.{i}.input": "BLD",
    "decoder.layers.{i}.self_attn_layer_norm": "BLD",
    **{f"decoder.layers.{{i}}.self_attn.{name}": "BLD" for name in _QKV},
    "decoder.layers.{i}.self_attn.scores": "BHLX",
    "decoder.layers.{i}.self_attn.probs": "BHLX",
    "decoder.layers.{i}.self_attn.context": "BHLF",
    "decoder.layers.{i}.self_attn.out_proj": "BLD",
    "decoder.layers.{i}.self_attn_residual": "BLD",
    "decoder.layers.{i}.encoder_attn_layer_norm": "BLD",
    "decoder.layers.{i}.encoder_attn.q_proj": "BLD",
    "decoder.layers.{i}.encoder_attn.k_proj": "BTD",
    "decoder.layers.{i}.encoder_attn.v_proj": "BTD",
    "decoder.layers.{i}.encoder_attn.scores": "BHLT",
    "decoder.layers.{i}.encoder_attn.probs": "BHLT",
    "decoder.layers.{i}.encoder_attn.context": "BHLF",
    "decoder.layers.{i}.encoder_attn.out_proj": "BLD",
    "decoder.layers.{i}.encoder_attn_residual": "BLD",
    "decoder.layers.{i}.final_layer_norm": "BLD",
    "decoder.layers.{i}.fc1": "BLM",
    "decoder.layers.{i}.activation": "BLM",
    "decoder.layers.{i}.fc2": "BLD",
    "decoder.layers.{i}.output": "BLD",
    "decoder.layer_norm": "BLD",
    "lm_head": "BLV",
}


def general(name: str) -> str:
    """Return the trace point of a tensor's name: the numbers of layers and blocks become {i} and {n}."""
    return re.sub(r"\blocal\.\d+", "local.{n}", re.sub(r"\blayers\.\d+", "layers.{i}", name))


def is_gradient(name: object) -> bool:
    """Return whether a name is that of a gradient: of a trace point or a parameter, with ``.grad`` behind."""
    return isinstance(name, str) and name.endswith(".grad")


def letters_of(name: str) -> str:
    """Return the dimensions of a tensor or of its gradient; "" for the gradient of a parameter."""
    return TRACE_POINTS[name] if name in TRACE_POINTS else TRACE_POINTS.get(general(name.removesuffix(".grad")), "")


def numbers_in(name: str) -> tuple[int, ...]:
    """Parse the layer number, and the block number if there is one, from a tensor's name."""
    return tuple(int(number) for number in re.findall(r"\.(\d+)\b", name))


def layer_of(name: str) -> str:
    """Return the layer of a tensor, such as ``encoder.layers.1``; "" where it is outside the layers."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[1:2] == ["layers"] else ""
