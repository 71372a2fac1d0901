"""An independent implementation of spec/vectors/README.md: the rule, and every operation from the manifest alone.

It imports nothing from this package.
"""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

LOWEST = np.finfo(np.float64).min
STORED = {"float64": np.float64, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


class Folder:
    """A vector on disk."""

    def __init__(self, path: Path) -> None:
        self.manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        self.weights, self.inputs, self.trace = (
            load_file(path / f"{file}.safetensors") for file in ("weights", "inputs", "trace")
        )

    @property
    def tensors(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.manifest["tensors"]
        return found


def rows_that_count(folder: Folder, entry: dict[str, Any]) -> np.ndarray:
    """Return booleans of the stored tensor's shape without the last axis."""
    if entry["valid"] is None:
        return np.ones(folder.trace[entry["name"]].shape[:-1], dtype=bool)
    mask = folder.inputs[entry["valid"]]
    start, stop = entry.get("slice", (0, mask.shape[1]))
    mask = mask[:, start:stop]
    sampled = entry.get("sampled")
    if sampled and sampled["axis"] == len(entry["shape"]) - 2:
        mask = mask[:, sampled["indices"]]
    return mask if len(entry["shape"]) == 3 else np.repeat(mask[:, None], entry["shape"][1], axis=1)


def passes(folder: Folder, entry: dict[str, Any], found: np.ndarray, arithmetic: str, way: str) -> bool:
    """Apply the rule of the README."""
    sigma, bound = entry["tolerances"][arithmetic][way]
    valid, expected = rows_that_count(folder, entry), folder.trace[entry["name"]]
    x, y = np.asarray(found, dtype=np.float64)[valid], expected[valid]
    if np.isnan(x).any() or (x[y == LOWEST] > -1e3).any():
        return False
    error = np.where(y == LOWEST, 0.0, x - np.where(y == LOWEST, 0.0, y))
    return bool((np.sqrt((error**2).mean(axis=1)) <= 6 * sigma).all() and (abs(error) <= bound).all())


def is_alone(folder: Folder, entry: dict[str, Any]) -> bool:
    """Return whether the vector holds all inputs of the operation: attention needs all its keys."""
    used = {entry["name"], *entry["inputs"]}
    is_sampled = any("sampled" in other for other in folder.tensors if other["name"] in used)
    return not (is_sampled and entry["operation"] in ("scores", "softmax", "weighted_sum"))


def computed(folder: Folder, entry: dict[str, Any], arithmetic: str) -> np.ndarray:
    """Compute one operation from the vector's tensors; half precision is computed in float32 and rounded at the end."""
    computing = np.float64 if arithmetic == "float64" else np.float32

    def held(tensor: np.ndarray) -> np.ndarray:
        if tensor.dtype != np.float64:
            return tensor
        lowest = tensor == LOWEST
        narrow = np.where(lowest, 0.0, tensor).astype(STORED[arithmetic]).astype(computing)
        return np.where(lowest, np.finfo(computing).min, narrow)

    inputs = [held(folder.trace[name] if name in folder.trace else folder.inputs[name]) for name in entry["inputs"]]
    weights = {role: held(folder.weights[name]) for role, name in entry.get("weights", {}).items()}
    found = OPERATIONS[entry["operation"]](folder, entry, inputs, weights, entry.get("settings", {}))
    assert found.dtype == computing
    lowest = found == np.finfo(computing).min
    narrow = np.where(lowest, 0.0, found).astype(STORED[arithmetic]).astype(np.float64)
    return np.where(lowest, LOWEST, narrow)


# --- operations: (folder, entry, inputs, weights, settings) -> tensor


def embed_tokens(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    B, rows, _D = entry["shape"]
    ids = inputs[0] if inputs else np.tile(np.arange(rows), (B, 1))
    ids = ids[:, entry["sampled"]["indices"]] if "sampled" in entry else ids
    table = weights["table"]
    found: np.ndarray = table[ids] * table.dtype.type(settings["scale"])
    return found


def add_positions(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    _B, rows, D = entry["shape"]
    sampled = entry.get("sampled", {"indices": range(rows)})["indices"]
    positions = np.empty((len(sampled), D))
    for row, place in enumerate(sampled):
        for k in range(D // 2):
            angle = (place + settings["start"]) * 10000.0 ** (-k / (D // 2 - 1))
            positions[row, k], positions[row, D // 2 + k] = math.sin(angle), math.cos(angle)
    total: np.ndarray = (inputs[0] + positions).astype(inputs[0].dtype)
    return total


def layer_norm(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    (x,) = inputs
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + x.dtype.type(settings["eps"]))
    found: np.ndarray = normed * weights["weight"] + weights["bias"]
    return found


def linear(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    x = inputs[0]
    if len(entry["inputs"]) > 1 or x.ndim == 4:  # contexts of blocks: concatenate the rows and merge the heads
        x = np.concatenate(inputs, axis=2).swapaxes(1, 2)
        x = x.reshape(*x.shape[:2], -1)
    found: np.ndarray = np.einsum("btd,od->bto", x, weights["weight"])
    return found + weights["bias"] if "bias" in weights else found


def activation(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    (x,) = inputs
    match settings["name"]:
        case "relu":
            found = np.where(x > 0, x, 0)
        case "gelu":
            found = x * np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))(x)
        case "gelu_new":
            found = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return np.asarray(found, dtype=x.dtype)


def add(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    x, y = inputs
    total: np.ndarray = x + y
    return total


def scores(folder: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    q = heads(entry, entry["inputs"][:1], inputs[:1])
    k = heads(entry, entry["inputs"][1:], inputs[1:])
    found: np.ndarray = np.einsum("bhsf,bhxf->bhsx", q / q.dtype.type(math.sqrt(q.shape[3])), k)
    return np.where(visible(folder, entry), found, np.finfo(found.dtype).min)


def softmax(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    exponentials = np.exp(inputs[0] - inputs[0].max(-1, keepdims=True))
    found: np.ndarray = exponentials / exponentials.sum(-1, keepdims=True)
    return found


def weighted_sum(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    values = heads(entry, entry["inputs"][1:], inputs[1:])
    found: np.ndarray = np.einsum("bhsx,bhxf->bhsf", inputs[0], values)
    return found


def pass_on(_: Folder, entry: dict[str, Any], inputs: list[Any], weights: Any, settings: Any) -> np.ndarray:
    (x,) = inputs
    found: np.ndarray = x
    return found


def heads(entry: dict[str, Any], names: list[str], tensors: list[np.ndarray]) -> np.ndarray:
    """Concatenate the tensors' rows, those of the tokens limited to the block, and split them into heads."""
    block = slice(*entry.get("slice", (None, None)))
    parts = [x[:, block] if ".tokens." in name else x for name, x in zip(names, tensors, strict=True)]
    x = np.concatenate(parts, axis=1)
    return x.reshape(*x.shape[:2], entry["shape"][1], -1).swapaxes(1, 2)


def visible(folder: Folder, entry: dict[str, Any]) -> np.ndarray:
    """Return which keys the queries attend to (B, 1, queries or 1, keys)."""
    if entry["name"].startswith("decoder") and ".self_attn." in entry["name"]:
        mask = np.asarray(folder.inputs["decoder_attention_mask"])
        return np.asarray(np.tri(mask.shape[1], dtype=bool) & mask[:, None, None])
    mask = np.asarray(folder.inputs["attention_mask"])
    if entry["name"].startswith("decoder"):
        return mask[:, None, None]
    start, stop = entry.get("slice", (0, mask.shape[1]))
    of_globals = np.ones((mask.shape[0], folder.manifest["dimensions"]["G"]), dtype=bool)
    return np.concatenate([of_globals, mask[:, start:stop]], axis=1)[:, None, None]


OPERATIONS = {
    "embed_tokens": embed_tokens,
    "add_positions": add_positions,
    "layer_norm": layer_norm,
    "linear": linear,
    "activation": activation,
    "add": add,
    "scores": scores,
    "softmax": softmax,
    "weighted_sum": weighted_sum,
    "pass on": pass_on,
}
