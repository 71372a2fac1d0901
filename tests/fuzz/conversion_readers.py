"""Sources of conversions: Flax files, checkpoints of every kind; the destination has their numbers, or nothing."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import numpy as np
import safetensors.torch
import torch
from flax_files import chunked, flax_arrays, nested, write
from fuzz import msgpack_forms
from fuzz.adapter_readers import CONFIGS, OWN_NAME, make_adapter, offline, use_adapter
from fuzz.mutations import Damage
from fuzz.oracle import Wrong
from fuzz.readers import (
    ANY,
    CONFIG,
    INDEX,
    JSON,
    PICKLE,
    SAFETENSORS,
    Reader,
    independent_tensors,
    make_bin,
    make_checkpoint,
    make_shards,
    read_checkpoint,
    train,
)

from pegasusx_ref import PegasusTokenizer, PegasusXError, PegasusXForConditionalGeneration, convert
from pegasusx_ref.backend.arrays import to_numpy

# --- Flax ------------------------------------------------------------------------------------------------------------


def make_flax(folder: Path, chunks: bool) -> None:
    folder.mkdir()
    arrays = flax_arrays(CONFIG, "float32")
    tree = nested(arrays)
    if chunks:
        tree["shared_embedding"]["embedding"] = chunked(arrays["shared_embedding/embedding"])
        tree["encoder"]["encoderblock_0/MlpBlock_0/Dense_0/kernel"] = tree["encoder"]["encoderblock_0"]["MlpBlock_0"][
            "Dense_0"
        ].pop("kernel")
    write(folder / "model.msgpack", tree)
    entries = {"block_size": 2, "activation_function": "relu", "max_position_embeddings": 8, "layer_norm_eps": 1e-6}
    (folder / "given.json").write_text(json.dumps(entries))
    train(folder, "identity")


def converting(folder: Path, source: Path, **arguments: Any) -> Path:
    """Convert into the folder "converted", which is complete or as before; the source stays as it is."""
    destination = folder / "converted"
    (destination / "x").mkdir(parents=True)
    before = sizes(folder)
    try:
        with offline():
            convert(source, destination, **arguments)
    except PegasusXError as error:
        if after := set(destination.rglob("*")) - {destination / "x"}:
            raise Wrong(f"half-written: {after} after {error}") from error
        raise
    finally:
        if sizes(folder) != before:
            raise Wrong("the source changed")
    return destination


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of every file but those of the destination."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "converted" not in path.parts:
            with suppress(OSError):
                status = path.lstat()
                found[str(path)] = status.st_size, 0 if path.is_dir() else status.st_mtime_ns
    return found


def read_flax(folder: Path) -> Path:
    return converting(folder, folder / "model.msgpack", config=folder / "given.json", tokenizer=folder / "spiece.model")


def use_flax(folder: Path, found: Path) -> None:
    """Compare with what msgpack reads, in the layout of torch."""
    model = PegasusXForConditionalGeneration.from_pretrained(found)
    expected, used = flax_values(folder / "model.msgpack"), set()
    for name, tensor in model.state_dict().items():
        flax = flax_name(name)
        value = expected.get(flax)
        if value is None:
            raise Wrong(f"{flax} is not in the file")
        if flax.endswith("/kernel"):
            value = value.reshape(value.shape[0], -1) if "/out/" not in flax else value.reshape(-1, value.shape[-1])
            value = value.T
        if not np.array_equal(value.astype(np.float32), tensor, equal_nan=True):
            raise Wrong(f"tensor {name} is not that of {flax}")
        used.add(flax)
    if used != expected.keys():
        raise Wrong(f"{expected.keys() - used} of the file are not used")
    entries = json.loads((folder / "given.json").read_text("utf-8-sig"))
    for name in {"block_size", "max_position_embeddings", "layer_norm_eps"} & entries.keys():
        if getattr(model.config, name) != entries[name]:
            raise Wrong(f"{name} is {getattr(model.config, name)!r}")
    PegasusTokenizer.from_pretrained(found)


def flax_values(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays by their names from shared_embedding's level on."""
    import ml_dtypes

    def array(leaf: Any) -> np.ndarray:
        if isinstance(leaf, dict):
            shape = [leaf["shape"][str(i)] for i in range(len(leaf["shape"]))]
            return np.concatenate(
                [array(leaf["chunks"][str(i)]).reshape(-1) for i in range(len(leaf["chunks"]))]
            ).reshape(shape)
        shape, dtype, data = msgpack.unpackb(leaf.data)
        return np.frombuffer(data, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).reshape(shape)

    found: dict[str, Any] = {}

    def visit(tree: Any, name: str) -> None:
        if isinstance(tree, dict) and "__msgpack_chunked_array__" not in tree:
            for key, value in tree.items():
                visit(value, f"{name}/{key}" if name else key)
        else:
            found[name] = tree

    visit(msgpack.unpackb(path.read_bytes(), strict_map_key=False), "")
    place = next(name for name in found if name.endswith("shared_embedding/embedding")).removesuffix(
        "shared_embedding/embedding"
    )
    return {name.removeprefix(place): array(leaf) for name, leaf in found.items() if name.startswith(place)}


SIDES = {"encoder": "encoder/encoderblock_", "decoder": "decoder/encoderdecoderblock_"}
RULES = (
    (r"shared\.weight", "shared_embedding/embedding"),
    (r"encoder\.embed_global\.weight", "encoder/Embed_0/embedding"),
    (r"encoder\.layer_norm\.(\w+)", r"encoder/encoder_norm/\1"),
    (r"decoder\.layer_norm\.(\w+)", r"decoder/encoderdecoder_norm/\1"),
    (r"(encoder|decoder)\.layers\.(\d+)\.fc1\.(\w+)", r"\1/\2/MlpBlock_0/Dense_0/\3"),
    (r"(encoder|decoder)\.layers\.(\d+)\.fc2\.(\w+)", r"\1/\2/MlpBlock_0/Dense_1/\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.(\w+)\.weight", r"encoder/\1/GlobalLocalSelfAttention_0/\2/kernel"),
    (r"decoder\.layers\.(\d+)\.self_attn\.(\w+)\.weight", r"decoder/\1/SelfAttention_0/\2/kernel"),
    (r"decoder\.layers\.(\d+)\.encoder_attn\.(\w+)\.weight", r"decoder/\1/MultiHeadDotProductAttention_0/\2/kernel"),
    (r"(encoder|decoder)\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)", r"\1/\2/LayerNorm_0/\3"),
    (r"encoder\.layers\.(\d+)\.global_self_attn_layer_norm\.(\w+)", r"encoder/\1/LayerNorm_1/\2"),
    (r"decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.(\w+)", r"decoder/\1/LayerNorm_1/\2"),
    (r"(encoder|decoder)\.layers\.(\d+)\.final_layer_norm\.(\w+)", r"\1/\2/LayerNorm_2/\3"),
)
WORDS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}


def flax_name(name: str) -> str:
    """Translate a name by rules of our own."""
    rule, new = next((rule, new) for rule, new in RULES if re.fullmatch(rule, name))
    parts = re.sub(rule, new, name).split("/")
    if parts[1].isdigit():
        parts[:2] = [SIDES[parts[0]] + parts[1]]
    parts = [WORDS.get(part, part) for part in parts]
    if parts[-1] == "weight":
        parts[-1] = "kernel" if "Dense" in name or ".fc" in name else "scale"
    return "/".join(parts)


FLAX: dict[str, Damage] = ANY | msgpack_forms.FORMS

# --- checkpoints -----------------------------------------------------------------------------------------------------


def read_converted(folder: Path, **arguments: Any) -> Path:
    return converting(folder, folder, **arguments)


def use_converted(folder: Path, found: Path, dtype: str | None = None) -> None:
    """Compare the converted tensors with those of the source, and load all of it."""
    source = independent_tensors(folder)
    copy: dict[str, Any] = {}
    for path in found.glob("*.safetensors"):
        copy |= safetensors.torch.load_file(path)
    for name, tensor in copy.items():
        expected = source.get(name.removeprefix("model."), source.get("shared.weight"))
        assert expected is not None
        expected = expected if dtype is None else expected.to(getattr(torch, dtype))
        if tensor.dtype != expected.dtype or not np.array_equal(bits(tensor), bits(expected)):
            raise Wrong(f"tensor {name} after the conversion")
    PegasusXForConditionalGeneration.from_pretrained(found)
    for name in ("spiece.model", "tokenizer_config.json"):
        if (found / name).exists() and (found / name).read_bytes() != (folder / name).read_bytes():
            raise Wrong(f"{name} after the conversion")


def bits(tensor: torch.Tensor) -> np.ndarray:
    found = np.ascontiguousarray(to_numpy(tensor))
    with np.errstate(invalid="ignore"):  # NaN that signals
        values = found.astype(np.float64)
    return np.where(np.isnan(values), 0, values)


def use_converted_adapter(folder: Path, found: Path) -> None:
    use_adapter(folder, PegasusXForConditionalGeneration.from_pretrained(found), is_bin=False)


# --- names of training programs, a bias of the logits, tables with more rows -----------------------------------------

PREFIXES = (
    "",
    "model.",
    "module.",
    "_orig_mod.",
    "module.model.",
    "_orig_mod.module.model.",
    "base_model.model.",
    "x.",
    "model.model.",
    "_fsdp_wrapped_module.",
    "a.b.c.",
    "..",
    "\x1b[31m.",
    "encoder.",
    "lm_head.",
    "\u202e",
    "_forward_module.model.",
)


def make_named(folder: Path) -> None:
    """Write a file of a training program, with a bias of the logits and padded tables."""
    make_checkpoint(folder)
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    table = torch.cat([tensors.pop("model.shared.weight"), torch.ones(6, 4)])
    named = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    named["module._orig_mod.model.shared.weight"] = table
    named["module._orig_mod.final_logits_bias"] = torch.arange(len(table)).float()[None] / 8
    safetensors.torch.save_file(named, path)


def damage_names(rng: Random, path: Path) -> None:
    """Rename tensors, and change the bias and the tables."""
    tensors = safetensors.torch.load_file(path)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name, kind = rng.choice(sorted(tensors)), rng.randrange(8)
        match = OWN_NAME.fullmatch(name)
        own = match[1] if match else name
        if kind == 0:
            tensors[rng.choice(PREFIXES) + own] = tensors.pop(name)
        elif kind == 1:
            tensors[rng.choice(PREFIXES) + own] = rng.choice((tensors[name].clone(), tensors[name] + 1))
        elif kind == 2:
            prefix = rng.choice(PREFIXES)
            tensors = {prefix + n.removeprefix("module._orig_mod."): x for n, x in tensors.items()}
        elif kind == 3:
            part = rng.choice(("module", "_orig_mod", "_checkpoint_wrapped_module", "base_layer", "lora_A", "x", ""))
            tensors = {re.sub(r"(layers\.\d+)\.", rf"\1.{part}.", n): x for n, x in tensors.items()}
        elif kind == 4:
            rows = rng.choice((1, 100, 129, 131, 136, 137, 200))
            tensors[rng.choice(("", "model.")) + "final_logits_bias"] = rng.choice(
                (
                    torch.zeros(1, rows),
                    torch.ones(1, rows),
                    torch.ones(rows),
                    torch.full((1, 136), torch.nan),
                    torch.ones(1, 1, 136),
                )
            )
        elif kind == 5:
            for table in [n for n in tensors if n.endswith("shared.weight")]:
                tensors[table] = rng.choice(
                    (tensors[table][:130], tensors[table][:100], tensors[table].repeat(2, 1), torch.ones(136, 5))
                )
        elif kind == 6:
            tensors[rng.choice(("", "module._orig_mod.model.")) + "encoder.embed_tokens.weight"] = torch.ones(
                rng.choice((130, 136)), 4
            )
        else:
            tensors[rng.choice(("final_logits_bias", "module._orig_mod.final_logits_bias"))] = torch.ones(1, 136)
    with suppress(Exception):  # of names or shared memory that the library does not write
        safetensors.torch.save_file({n: x.contiguous() for n, x in tensors.items()}, path)


def use_named(folder: Path, found: PegasusXForConditionalGeneration) -> None:
    """Compare every tensor with the one in the file whose name ends with it; two that differ are ambiguous."""
    by_name: dict[str, list[torch.Tensor]] = {}
    for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items():
        parts = [p for p in name.split(".") if p not in ("module", "_orig_mod", "_checkpoint_wrapped_module")]
        match = OWN_NAME.fullmatch(".".join(parts))
        if match is not None:
            by_name.setdefault(match[1], []).append(tensor.float())
    for name, tensor in found.state_dict().items():
        candidates = by_name.get(name) or by_name.get("shared.weight") or by_name["encoder.embed_tokens.weight"]
        for candidate in candidates:
            value = candidate.numpy().reshape(-1) if name == "final_logits_bias" else candidate.numpy()
            if not np.array_equal(tensor, value, equal_nan=True):
                raise Wrong(f"tensor {name} is not that of the file")
    bias = by_name.get("final_logits_bias")
    if bias is not None and bool(torch.stack(bias).any()) != ("final_logits_bias" in found.state_dict()):
        raise Wrong("the bias of the logits")
    with suppress(ArithmeticError):
        found.generate([[3, 4, 5]], max_new_tokens=2, num_beams=1, num_return_sequences=1)
    found.save_pretrained(folder / "copy")
    again = PegasusXForConditionalGeneration.from_pretrained(folder / "copy")
    if any(not np.array_equal(x, found.state_dict()[n], equal_nan=True) for n, x in again.state_dict().items()):
        raise Wrong("the tensors after saving")


def _reader(
    make: Callable[[Path], None], damages: dict[str, dict[str, Damage]], weight: float = 0.5, **arguments: Any
) -> Reader:
    use = partial(use_converted, dtype=arguments.get("dtype"))
    return Reader(make, partial(read_converted, **arguments), use, damages, weight)


READERS: dict[str, Reader] = {
    "flax": Reader(
        partial(make_flax, chunks=False), read_flax, use_flax, {"model.msgpack": FLAX, "given.json": JSON}, 1.5
    ),
    "flax in chunks": Reader(partial(make_flax, chunks=True), read_flax, use_flax, {"model.msgpack": FLAX}),
    "converted": _reader(
        make_checkpoint,
        {
            "config.json": JSON,
            "generation_config.json": JSON,
            "model.safetensors": SAFETENSORS,
            "tokenizer_config.json": JSON,
            "spiece.model": ANY,
        },
    ),
    "converted to shards": _reader(
        partial(make_shards, bins=False),
        {"model.safetensors.index.json": INDEX, "part-0": SAFETENSORS},
        dtype="float16",
        max_shard_size="200B",
    ),
    "converted bin": _reader(
        partial(make_bin, is_zip=True), {"pytorch_model.bin": PICKLE, "config.json": JSON}, dtype="bfloat16"
    ),
    "converted adapter": Reader(
        partial(make_adapter, is_bin=False),
        read_converted,
        use_converted_adapter,
        {"adapter_config.json": CONFIGS, "adapter_model.safetensors": SAFETENSORS},
        0.5,
    ),
    "named": Reader(
        make_named, read_checkpoint, use_named, {"model.safetensors": SAFETENSORS | {"names": damage_names}}, 1.5
    ),
}
