"""PEFT adapters over a small model: damage to settings, tensors and the base; an independent merge."""

import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import huggingface_hub.hf_api  # noqa: F401 - starts a program when it is imported
import numpy as np
import safetensors.torch
import torch
from fuzz.access import NOWHERE
from fuzz.mutations import SPECIAL, Damage
from fuzz.oracle import Wrong
from fuzz.readers import JSON, PICKLE, SAFETENSORS, Reader, independent_tensors, make_checkpoint

from pegasusx_ref import PegasusTokenizer, PegasusXForConditionalGeneration

PREFIX = "base_model.model.model."
Q, K, FC1 = "encoder.layers.0.self_attn.q_proj", "decoder.layers.0.encoder_attn.k_proj", "encoder.layers.0.fc1"
GLOBAL, NORM = "encoder.embed_global", "decoder.layer_norm"
OWN_NAME = re.compile(r"(?:.*?\.)??((?:shared|encoder|decoder|lm_head|final_logits_bias)(?:\..*)?)", re.DOTALL)
TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


@contextmanager
def offline() -> Iterator[None]:
    """Let names of the Hub be looked up in an empty cache only."""
    from huggingface_hub import constants

    with patch.multiple(constants, HF_HUB_OFFLINE=True, HF_HUB_CACHE=NOWHERE, HF_TOKEN_PATH=f"{NOWHERE}/token"):
        yield


def adapter_tensors(dora: bool) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    found = {}
    for name, (rows, columns), rank in ((Q, (4, 4), 2), (K, (4, 4), 3), (FC1, (3, 4), 2)):
        found[f"{PREFIX}{name}.lora_A.weight"] = draw(rank, columns)
        found[f"{PREFIX}{name}.lora_B.weight"] = draw(rows, rank)
        if dora:
            found[f"{PREFIX}{name}.lora_magnitude_vector"] = draw(rows).abs() + 1
    if not dora:
        found[f"{PREFIX}{GLOBAL}.lora_embedding_A"], found[f"{PREFIX}{GLOBAL}.lora_embedding_B"] = (
            draw(2, 1),
            draw(4, 2),
        )
        found[f"{PREFIX}{FC1}.lora_B.bias"] = draw(3)
    return found | {f"{PREFIX}{NORM}.{kind}": draw(4) for kind in ("weight", "bias")}


def make_adapter(folder: Path, is_bin: bool) -> None:
    folder.mkdir()
    make_checkpoint(folder / "base")
    tensors = adapter_tensors(dora=is_bin)
    if is_bin:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    entries = {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": is_bin,
        "use_dora": is_bin,
        "rank_pattern": {"encoder_attn.k_proj": 3},
        "alpha_pattern": {"k_proj": 5, "fc1": 1.5},
        "target_modules": ["q_proj", "k_proj", "fc1", "embed_global"],
        "modules_to_save": ["decoder.layer_norm"],
        "bias": "none",
        "revision": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "init_lora_weights": True,
        "lora_bias": not is_bin,
        "task_type": "SEQ_2_SEQ_LM",
        "lora_dropout": 0.1,
    }
    (folder / "adapter_config.json").write_text(json.dumps(entries))


# --- damage ----------------------------------------------------------------------------------------------------------

PLACES = (
    "",
    ".",
    "..",
    "/",
    "base/",
    "./base",
    "base/../base",
    "base\0",
    "/proc/self/cwd",
    "x" * 5000,
    "~",
    "\x1b[31m\n",
    "/dev/stdin",
    "/dev/zero",
    "file:///etc/passwd",
    "http://127.0.0.1/x",
    "\ud800",
    "~root",
    "/etc",
    "../../../../etc",
    "./base/config.json",
    "adapter_config.json",
    "owner/../name",
    "C:\\base",
    "/proc/self/root",
    None,
    1,
    ["base"],
    {"a": 1},
)
PATTERNS = (
    "(a+)+$",
    "(.*)*x",
    "(.*.*.*)*=",
    "(q|q_|q_p)*z",
    "q_proj|k_proj",
    ".*q_proj",
    "^model.encoder",
    "[",
    "",
    "q.proj",
    "\\bq_proj",
    "self_attn.q_proj",
    "proj",
    "q_proj",
    "^" + Q,
    "^model." + Q,
    "model." + Q,
    "lora_alpha",
    "r",
    "x" * 5000,
    "encoder.layers.0.self_attn.q_proj.",
    ".q_proj",
    "..............",
    "(?:a{1000}){1000}",
    "\u202e",
    "Q_PROJ",
)
NUMBERS = (
    0,
    1,
    2,
    3,
    -1,
    0.5,
    1e6,
    1e7,
    1e-320,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    True,
    None,
    "2",
    [2],
    {"a": 2},
)
VALUES: Any = (
    True,
    False,
    None,
    1,
    "x",
    "",
    [],
    {},
    ["q_proj"],
    "q_proj",
    "gaussian",
    "pissa",
    "olora",
    "loftq",
    "LORA",
    "IA3",
)


def damage_settings(rng: Random, path: Path) -> None:
    """Change settings of the adapter, those that count more often."""
    entries = json.loads(path.read_text("utf-8"))
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(7)
        if kind == 0:
            entries["base_model_name_or_path"] = rng.choice(PLACES)
        elif kind == 1:
            entries[rng.choice(("r", "lora_alpha"))] = rng.choice(NUMBERS)
        elif kind == 2:
            entries["alpha_pattern"] = {
                rng.choice(PATTERNS): rng.choice(NUMBERS[:7]) for _ in range(rng.choice((1, 2, 3)))
            }
        elif kind == 3:
            entries["rank_pattern"] = {rng.choice(PATTERNS): rng.choice(NUMBERS) for _ in range(rng.choice((1, 2)))}
        elif kind == 4:
            pattern = [rng.choice(PATTERNS)]
            name = rng.choice(("target_modules", "modules_to_save", "exclude_modules", "layers_pattern"))
            entries[name] = rng.choice((pattern, pattern[0], None, ["layer_norm"], [""], [1], [None], {"a": 1}))
        elif kind == 5:
            entries[rng.choice(list(entries))] = rng.choice(VALUES)
        else:
            name = rng.choice(
                (
                    "layer_replication",
                    "megatron_config",
                    "lora_dtype",
                    "trainable_token_indices",
                    "x",
                    "\x1b[31m",
                    "target_parameters",
                    "arrow_config",
                    "fan_in_fan_out",
                    "use_qalora",
                    "revision",
                )
            )
            entries[name] = rng.choice(VALUES)
    path.write_text(json.dumps(entries), "utf-8")


RENAMED: tuple[Callable[[str], str], ...] = (
    lambda name: name.replace(PREFIX, ""),
    lambda name: name.replace(PREFIX, "model."),
    lambda name: "module." + name,
    lambda name: name.replace(".weight", ".default.weight"),
    lambda name: name.replace("lora_A", "lora_B"),
    lambda name: name.replace("lora_B", "lora_A"),
    lambda name: name.replace("q_proj", "v_proj"),
    lambda name: name + ".x",
    lambda name: name.replace("layers.0", "layers.1"),
    lambda name: "",
    lambda name: "\x1b[31m\n",
    lambda name: "." * 2000,
    lambda name: name.replace(".lora", ".base_layer.lora"),
    lambda name: f"{PREFIX}{Q}.base_layer.weight",
    lambda name: f"{PREFIX}{Q}.weight",
    lambda name: f"{PREFIX}shared.lora_A.weight",
    lambda name: f"{PREFIX}shared.weight",
    lambda name: f"{PREFIX}{NORM}.modules_to_save.bias",
    lambda name: f"{PREFIX}shared.lora_embedding_A",
    lambda name: f"{PREFIX}{Q}.lora_magnitude_vector.weight",
    lambda name: "base_model.model.lm_head.weight",
    lambda name: f"{PREFIX}decoder.embed_tokens.weight",
    lambda name: f"{PREFIX}{FC1}.lora_B.bias",
    lambda name: name * 50,
)
CHANGED: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda x: x.T.contiguous() if x.ndim == 2 else x,
    lambda x: x.reshape(-1),
    lambda x: x[None],
    lambda x: x[:1],
    lambda x: x * math.nan,
    lambda x: x * 1e30,
    lambda x: x.double(),
    lambda x: x.half(),
    lambda x: x.bfloat16(),
    lambda x: x.int(),
    lambda x: x[:0],
    lambda x: x.repeat(*[2] * x.ndim) if x.ndim else x,
    lambda x: x * 0,
    lambda x: x.to(torch.complex64),
    lambda x: x.to(torch.float8_e4m3fn),
    lambda x: torch.ones(()),
    lambda x: x * math.inf,
)


def damage_tensors(rng: Random, path: Path) -> None:
    """Rename, change, drop and repeat tensors; the file stays valid."""
    is_bin = path.suffix == ".bin"
    tensors = torch.load(path) if is_bin else safetensors.torch.load_file(path)
    for _ in range(rng.choice((1, 1, 2, 4))):
        name, kind = rng.choice(sorted(tensors)), rng.randrange(5)
        if kind == 0:
            tensors[rng.choice(RENAMED)(name)] = tensors.pop(name)
        elif kind == 1:
            tensors[rng.choice(RENAMED)(name)] = tensors[name].clone()
        elif kind in (2, 3):
            tensors[name] = rng.choice(CHANGED)(tensors[name])
        elif len(tensors) > 1:
            del tensors[name]
    torch.save(tensors, path) if is_bin else safetensors.torch.save_file(tensors, path)


def in_place_of_base(put: Callable[[Path], Any]) -> Damage:
    def damage(rng: Random, path: Path) -> None:
        shutil.rmtree(path)
        put(path)

    return damage


def adapter_as_base(rng: Random, path: Path) -> None:
    shutil.copy(path.parent / "adapter_config.json", path)
    (path / "model.safetensors").unlink()


def pattern(name: str, text: Any) -> Damage:
    def damage(rng: Random, path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: text}))

    return damage


CONFIGS: dict[str, Damage] = JSON | {
    "settings": damage_settings,
    "exponential rank_pattern": pattern("rank_pattern", {"(.*.*)*=": 2, "(a+)+$": 2}),
    "exponential alpha_pattern": pattern("alpha_pattern", {"(.*.*)*=": 2}),
    "exponential target_modules": pattern("target_modules", "((.*.*)*)*="),
    "long alpha_pattern": pattern("alpha_pattern", {"." * 100_000: 2}),
    "many alphas": pattern("alpha_pattern", {f"a{i}": 2 for i in range(2_000)}),
    "many ranks": pattern("rank_pattern", {f"a{i}": 1 + i % 60_000 for i in range(200_000)}),
    "many modules to save": pattern("modules_to_save", [f"a{i}" for i in range(500_000)]),
    "many layers of its base": pattern("base_model_name_or_path", "base/" * 200_000),
}
BASE: dict[str, Damage] = {name: in_place_of_base(put) for name, put in SPECIAL.items()} | {"adapter": adapter_as_base}


# --- what the files say ----------------------------------------------------------------------------------------------


def read_adapter(folder: Path) -> PegasusXForConditionalGeneration:
    with offline():
        return PegasusXForConditionalGeneration.from_pretrained(folder)


def use_adapter(folder: Path, found: PegasusXForConditionalGeneration, is_bin: bool) -> None:
    """Compare with a merge of our own; it needs the names that peft gives."""
    path = folder / ("adapter_model.bin" if is_bin else "adapter_model.safetensors")
    entries = json.loads((folder / "adapter_config.json").read_text("utf-8-sig"))
    tensors = torch.load(path, weights_only=True) if is_bin else safetensors.torch.load_file(path)
    tensors = tensors.get("state_dict", tensors)  # read with a warning
    expected = expected_tensors(independent_tensors(folder / "base"), entries, tensors)
    changed = {match[1].split(".lora")[0] for name in tensors if (match := OWN_NAME.fullmatch(name))}
    if changed & {name.removesuffix(".weight") for name in TABLES} or expected.keys() & set(TABLES[1:]):
        expected = {name: tensor for name, tensor in expected.items() if name not in TABLES}
    state = found.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise Wrong(f"tensor {name} is not used")
        # The library merges in the dtype of the base; products of 1e30 overflow there.
        array = tensor.detach().numpy()
        is_ordinary = np.isfinite(array).all() and np.abs(array).max() < 1e20
        if is_ordinary and not np.allclose(state[name], array, rtol=1e-5, atol=1e-6):
            raise Wrong(f"tensor {name}: {state[name]} instead of {array}")
    PegasusTokenizer.from_pretrained(folder)
    with suppress(ArithmeticError):
        found.generate([[3, 4, 5]], max_new_tokens=2, num_beams=1, num_return_sequences=1)
    found.save_pretrained(folder / "copy")


def expected_tensors(
    base: dict[str, torch.Tensor], entries: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Merge as the paper describes, in float64."""
    expected = {name: tensor.double() for name, tensor in base.items()}
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for full, tensor in tensors.items():
        match = OWN_NAME.fullmatch(full)
        if match is None:
            raise Wrong(f"tensor {full!r} was not refused")
        module, lora, part = match[1].partition(".lora_")
        if lora:
            parts[module][part] = tensor.double()
        elif not module.endswith((".original_module.bias", ".modules_to_save.bias")):
            expected[module.replace(".base_layer", "")] = tensor.double()
    for module, found in parts.items():
        is_table = "embedding_A" in found
        a, b = (found[name] for name in (("embedding_A", "embedding_B") if is_table else ("A.weight", "B.weight")))
        keys = entries.get("alpha_pattern") or {}
        fits = [key for key in keys if re.match(rf"(.*\.)?({key})$", f"model.{module}")]
        alpha = keys[fits[0]] if fits else entries.get("lora_alpha", 8)
        scale = alpha / (math.sqrt(len(a)) if entries.get("use_rslora") else len(a))
        change = (b @ a).T * scale if is_table else b @ a * scale
        total = expected[f"{module}.weight"] + change
        magnitude = next((x for name, x in found.items() if name.startswith("magnitude_vector")), None)
        if magnitude is not None:
            total = total / total.norm(dim=1, keepdim=True) * magnitude[:, None]
        expected[f"{module}.weight"] = total
        if "B.bias" in found:
            expected[f"{module}.bias"] = expected[f"{module}.bias"] + found["B.bias"] * scale
    return expected


READERS: dict[str, Reader] = {
    "adapter": Reader(
        partial(make_adapter, is_bin=False),
        read_adapter,
        partial(use_adapter, is_bin=False),
        {
            "adapter_config.json": CONFIGS,
            "adapter_model.safetensors": SAFETENSORS | {"tensors": damage_tensors},
            "base": BASE,
        },
        1.5,
    ),
    "adapter of torch": Reader(
        partial(make_adapter, is_bin=True),
        read_adapter,
        partial(use_adapter, is_bin=True),
        {"adapter_config.json": CONFIGS, "adapter_model.bin": PICKLE | {"tensors": damage_tensors}},
    ),
}
