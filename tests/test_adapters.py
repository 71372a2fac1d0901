"""Adapters of peft: merged on load as peft merges them; every part used; everything else refused by name."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_foreign_files import failure

from pegasusx_ref import (
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
)
from pegasusx_ref.checkpoint.location import Location, locate

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SMALL = PegasusXConfig.preset(
    "tiny", vocab_size=40, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=20, encoder_layers=2, decoder_layers=1
)
TABLES = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
Q = "base_model.model.model.encoder.layers.0.self_attn.q_proj"
FC1 = "base_model.model.model.encoder.layers.1.fc1"


@pytest.fixture(scope="module")
def peft(transformers: ModuleType) -> ModuleType:
    module: ModuleType = pytest.importorskip("peft", reason="peft is not installed")
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    PegasusXForConditionalGeneration.from_random(SMALL, seed=1).save_pretrained(folder)
    return folder


def peft_model(transformers: ModuleType, folder: Path, head: bool = True) -> Any:
    kind = transformers.PegasusXForConditionalGeneration if head else transformers.PegasusXModel
    return kind.from_pretrained(folder).eval()


def make_adapter(
    peft: ModuleType, transformers: ModuleType, base: Path, folder: Path, seed: int, **settings: Any
) -> None:
    """Save an adapter, all of whose tensors are random."""
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", init_lora_weights=False, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(peft_model(transformers, base), config)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)


def merged_by_peft(peft: ModuleType, transformers: ModuleType, base: Path, folder: Path) -> dict[str, np.ndarray]:
    """Merge an adapter with peft: the state dict without ``model.``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(peft_model(transformers, base), folder).merge_and_unload()
    return {name.removeprefix("model."): tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_as_peft(ours: Any, theirs: dict[str, np.ndarray]) -> None:
    for name, tensor in theirs.items():
        found = ours.weights[name]
        error = np.abs(found - tensor).max() / np.abs(tensor).max()
        assert error <= 1e-6, f"{name}: {error}"


def load(folder: Path, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* differ from .* although config.json ties them")
        return PegasusXForConditionalGeneration.from_pretrained(folder, **arguments)


LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
FULL = ("embed_global", "final_layer_norm", "encoder_attn_layer_norm", "lm_head", "shared", "embed_tokens", "k_proj")


def drawn_settings(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    targets = [str(name) for name in rng.choice([*LINEAR, "embed_global"], rng.integers(1, 5), replace=False)]
    if seed % 4 == 0:
        targets.append(str(rng.choice(["shared", "encoder.embed_tokens", "lm_head"])))
    use_dora = bool(rng.random() < 0.4)
    settings: dict[str, Any] = {
        "target_modules": targets,
        "r": int(rng.integers(1, 9)),
        "lora_alpha": int(rng.integers(1, 33)),
        "use_rslora": bool(rng.random() < 0.4),
        "use_dora": use_dora,
        "bias": str(rng.choice(["none", "all", "lora_only"])),
    }
    if rng.random() < 0.5:
        full = [str(name) for name in rng.choice(FULL, rng.integers(1, 4), replace=False) if name not in targets]
        tables = {"shared", "embed_tokens", "lm_head"}
        settings["modules_to_save"] = [name for name in full if seed % 4 or name not in tables] or None
    if rng.random() < 0.6:
        settings["rank_pattern"] = {"encoder.layers.1.fc1": 5, targets[0]: 3}  # peft sorts them when it saves
    if rng.random() < 0.6:
        settings["alpha_pattern"] = {
            "^model.decoder.layers.0.self_attn.q_proj": 7, "layers.1.fc1": 11, targets[-1]: 2.5, "fc1": 4,
        }  # fmt: skip
    if not use_dora and set(targets) <= {"fc1", "fc2"}:
        settings["lora_bias"] = True
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_merging_equals_peft(peft: ModuleType, transformers: ModuleType, base: Path, tmp_path: Path, seed: int) -> None:
    make_adapter(peft, transformers, base, tmp_path, seed, **drawn_settings(seed))
    assert_as_peft(load(tmp_path), merged_by_peft(peft, transformers, base, tmp_path))


HEAD = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
TABLE_CASES: dict[str, dict[str, Any]] = {
    "LoRA on shared": {"target_modules": ["shared"]},
    "LoRA on both embeddings": {"target_modules": ["embed_tokens"]},
    "DoRA on shared and globals": {"target_modules": ["shared", "embed_global"], "use_dora": True},
    "DoRA on linear maps": {"target_modules": ["fc1", "q_proj"], "use_dora": True, "bias": "lora_only"},
    "LoRA on the head, base table saved": {"target_modules": ["lm_head"]},
    "LoRA on all four": {"target_modules": ["lm_head", "shared", "embed_tokens"]},
    "own head": HEAD,
    "own shared table": {"target_modules": ["q_proj"], "modules_to_save": ["shared"]},
    "own embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "own tables kept equal": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head"],
        "ensure_weight_tying": True,
    },
    "LoRA kept equal": {"target_modules": ["shared"], "ensure_weight_tying": True},
    "biases of LoRA": {"target_modules": ["fc1", "fc2"], "lora_bias": True},
    "all linear": {"target_modules": "all-linear", "bias": "all"},
}


@pytest.mark.parametrize("case", TABLE_CASES)
def test_tables_and_biases_are_merged_as_by_peft(
    peft: ModuleType, transformers: ModuleType, base: Path, tmp_path: Path, case: str
) -> None:
    make_adapter(peft, transformers, base, tmp_path, 3, r=2, **TABLE_CASES[case])
    theirs, ours = merged_by_peft(peft, transformers, base, tmp_path), load(tmp_path)
    assert_as_peft(ours, theirs)
    tables = [theirs[f"{name}.weight"] for name in TABLES] + [theirs["lm_head.weight"]]
    assert ours.config.tie_word_embeddings is all(np.array_equal(table, tables[0]) for table in tables)


# --- without peft ----------------------------------------------------------------------------------------------------


def write_adapter(folder: Path, base: Any, tensors: dict[str, np.ndarray] | None = None, **settings: Any) -> Path:
    """Write an adapter of one matrix, or of the given tensors."""
    rng = np.random.default_rng(5)
    factors = {f"{Q}.lora_A.weight": (2, 16), f"{Q}.lora_B.weight": (16, 2)}
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in factors.items()}
    folder.mkdir(exist_ok=True, parents=True)
    save_file(drawn if tensors is None else tensors, folder / WEIGHTS)
    values = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "lora_alpha": 6} | settings
    (folder / CONFIG).write_text(json.dumps(values))
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", str(base))


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def expected_q(base: Path, adapter: Path, scale: float) -> np.ndarray:
    tensors = load_file(adapter / WEIGHTS)
    delta = scale * (tensors[f"{Q}.lora_B.weight"].astype(float) @ tensors[f"{Q}.lora_A.weight"].astype(float))
    expected: np.ndarray = load(base, dtype="float64").weights["encoder.layers.0.self_attn.q_proj.weight"] + delta
    return expected


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 3.0), (True, 6 / np.sqrt(2))])
def test_update_is_scale_times_product(base: Path, tmp_path: Path, use_rslora: bool, scale: float) -> None:
    folder = write_adapter(tmp_path / "adapter", str(base), use_rslora=use_rslora)
    ours, plain = load(folder), load(base)
    expected = expected_q(base, folder, scale)
    name = "encoder.layers.0.self_attn.q_proj.weight"
    assert np.abs(ours.weights[name] - expected).max() <= 1e-6 * np.abs(expected).max()
    others = set(plain.state_dict()) - {name}
    assert all(np.array_equal(ours.state_dict()[other], plain.state_dict()[other]) for other in others)


def test_float64_base_is_merged_in_float64(base: Path, adapter: Path, tmp_path: Path) -> None:
    model = load(base, dtype="float64")
    model.save_pretrained(tmp_path / "double")
    folder = write_adapter(tmp_path / "adapter", "../double")
    found = load(folder, dtype="float64").weights["encoder.layers.0.self_attn.q_proj.weight"]
    expected = expected_q(tmp_path / "double", folder, 3.0)
    assert np.abs(found - expected).max() <= 1e-15 * np.abs(expected).max()


def test_merged_model_is_saved_without_adapter(adapter: Path, tmp_path: Path) -> None:
    merged = load(adapter)
    merged.save_pretrained(tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert all(np.array_equal(t, again.state_dict()[name]) for name, t in merged.state_dict().items())
    headless = PegasusXModel.from_pretrained(adapter)
    assert all(np.array_equal(t, merged.state_dict()[name]) for name, t in headless.state_dict().items())
    assert PegasusXConfig.from_pretrained(adapter).vocab_size == 40


def test_adapter_in_a_bin_file(adapter: Path) -> None:
    torch = pytest.importorskip("torch")
    expected = {name: tensor.copy() for name, tensor in load(adapter).state_dict().items()}
    tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(adapter / WEIGHTS).items()}
    torch.save(tensors, adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    found = load(adapter).state_dict()
    assert all(np.array_equal(tensor, found[name]) for name, tensor in expected.items())


def test_tables_with_rows_for_added_tokens(base: Path, tmp_path: Path) -> None:
    table = draw(48, 16)
    names = ("base_model.model.model.shared.weight", "base_model.model.lm_head.weight")
    folder = write_adapter(tmp_path / "adapter", str(base), dict.fromkeys(names, table))
    with pytest.warns(UserWarning, match="tables have 48 rows, config.json says vocab_size=40"):
        model = PegasusXForConditionalGeneration.from_pretrained(folder)
    assert model.config.vocab_size == 48
    assert model.config.tie_word_embeddings
    assert np.array_equal(model.weights["encoder.embed_tokens.weight"], table)


# --- where the base model is -----------------------------------------------------------------------------------------


def test_base_is_found_as_by_peft_or_beside_the_adapter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name, place in {
        "model": "cwd/model",  # relative to the current folder
        "inside": "run/adapter/inside",
        "beside/v2": "run/beside/v2",
        "/home/somebody/moved": "run/moved",
    }.items():
        folder = write_adapter(tmp_path / "run" / "adapter", name)
        shutil.copytree(base, tmp_path / place)
        location = locate(folder, "model", {})
        assert location == Location(location.folder, folder)
        assert location.folder.samefile(tmp_path / place)


def test_base_of_the_hub_is_downloaded_in_its_revision(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def download(*arguments: Any) -> Path:
        calls.append(arguments)
        return base

    monkeypatch.setattr("pegasusx_ref.checkpoint.location.download", download)
    folder = write_adapter(tmp_path / "adapter", "somebody/pegasus-x", revision="v3")
    assert locate(folder, "model", {"revision": "of-the-adapter", "token": "t"}) == Location(base, folder)
    assert calls == [("somebody/pegasus-x", "model", {"revision": "v3", "token": "t"})]


def test_tokenizer_is_the_adapters_or_the_bases(
    base: Path, adapter: Path, tokenizer: PegasusTokenizer, tmp_path: Path
) -> None:
    assert locate(adapter, "tokenizer", {}).folder == base
    tokenizer.save_pretrained(adapter)
    assert locate(adapter, "tokenizer", {}).folder == adapter
    assert PegasusTokenizer.from_pretrained(adapter).vocab_size == tokenizer.vocab_size


def test_a_config_beside_the_adapter_changes_nothing(adapter: Path) -> None:
    before = load(adapter).state_dict()
    SMALL.replace(encoder_layers=7).save_pretrained(adapter)
    assert all(np.array_equal(tensor, before[name]) for name, tensor in load(adapter).state_dict().items())


def test_weights_of_a_whole_model_beside_the_adapter_win_with_a_warning(base: Path, adapter: Path) -> None:
    shutil.copytree(base, adapter, dirs_exist_ok=True)
    with pytest.warns(UserWarning, match="its adapter is not merged"):
        model = PegasusXForConditionalGeneration.from_pretrained(adapter)
    assert all(np.array_equal(tensor, load(base).state_dict()[name]) for name, tensor in model.state_dict().items())


# --- what is refused -------------------------------------------------------------------------------------------------


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type='IA3': only LORA is merged"),
    ({"peft_type": None}, "peft_type=None"),
    ({"peft_type": ["LORA"]}, "only LORA is merged"),
    ({"fan_in_fan_out": True}, "'fan_in_fan_out' is True"),
    ({"layer_replication": [[0, 2]]}, "'layer_replication'"),
    ({"trainable_token_indices": [3]}, "'trainable_token_indices' is [3]"),
    ({"use_qalora": True}, "merge_and_unload()"),
    ({"megatron_config": {"a": 1}}, "'megatron_config'"),
    ({"invented_in_2027": {"a": 1}}, "'invented_in_2027'"),
    ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changed the base model"),
    ({"init_lora_weights": {}}, "init_lora_weights={}"),
    ({"r": 10**40}, "must be an integer from 1 to 65,536"),
    ({"r": 0}, "r=0 must be"),
    ({"r": True}, "r=True must be"),
    ({"r": 4}, "expected an inner size of the rank, 4"),
    ({"lora_alpha": float("nan")}, "lora_alpha=nan must be a number"),
    ({"lora_alpha": float("inf")}, "lora_alpha=inf"),
    ({"lora_alpha": "6"}, "lora_alpha='6'"),
    ({"alpha_pattern": {"(q|k)_proj": 3}}, "the regular expression '(q|k)_proj'"),
    ({"alpha_pattern": {"(.+)+x": 3}}, "the regular expression"),
    ({"alpha_pattern": {"q_proj": None}}, "q_proj=None"),
    ({"alpha_pattern": [3]}, "must be objects"),
    ({"rank_pattern": 3}, "must be objects"),
    ({"rank_pattern": {"q_proj": 1e300}}, "q_proj=1e+300"),
    ({"modules_to_save": "lm_head"}, "modules_to_save='lm_head'"),
    ({"modules_to_save": [3]}, "modules_to_save=[3]"),
    ({"use_dora": True}, "contradict each other about a magnitude vector"),
    ({"revision": 3}, "revision=3"),
    ({"base_model_name_or_path": None}, "base_model_name_or_path=None"),
    ({"base_model_name_or_path": ""}, "base_model_name_or_path=''"),
    ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path=['a']"),
    ({"base_model_name_or_path": "a\0b"}, "base_model_name_or_path='a\\x00b'"),
    ({"base_model_name_or_path": "/nowhere/at all"}, "'/nowhere/at all' is no other folder"),
    ({"base_model_name_or_path": "x" * 5000}, "is no other folder"),
    ({"base_model_name_or_path": "."}, "'.' is no other folder"),
    ({"base_model_name_or_path": "fifo"}, "'fifo' is no other folder"),
    ({"base_model_name_or_path": "../adapter"}, "is no other folder"),
    ({"base_model_name_or_path": "../other"}, "is an adapter too"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=lambda value: str(value)[:40])
def test_settings_that_cannot_be_merged_are_named(
    base: Path, adapter: Path, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapter)
    os.mkfifo(adapter / "fifo")
    write_adapter(adapter.parent / "other", str(base))
    assert message in failure(write_adapter(adapter, **({"base": str(base)} | rename(settings))))


def rename(settings: dict[str, Any]) -> dict[str, Any]:
    return {"base" if name == "base_model_name_or_path" else name: value for name, value in settings.items()}


A, B = draw(2, 16), draw(16, 2)
PAIR = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}
TENSORS: list[tuple[dict[str, np.ndarray], str]] = [
    ({f"{Q}.lora_A.weight": A}, "has the parts lora_A.weight"),
    ({f"{Q}.lora_A.weight": A, f"{Q}.lora_embedding_B": B}, "expected lora_embedding_A and lora_embedding_B"),
    ({f"{Q}.lora_A.weight": A.T, f"{Q}.lora_B.weight": B}, "factors of shapes (16, 2) and (16, 2)"),
    ({f"{Q}.lora_A.weight": A[0], f"{Q}.lora_B.weight": B}, "factors of shapes (16, 2) and (16,)"),
    ({f"{Q}.lora_A.weight": A[:0], f"{Q}.lora_B.weight": B[:, :0]}, "factors of shapes (16, 0) and (0, 16)"),
    ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": np.zeros((), np.float32)}, "factors of shapes ()"),
    ({f"{FC1}.lora_A.weight": A, f"{FC1}.lora_B.weight": B}, "has shape (16, 16), the base model's tensor (24, 16)"),
    (PAIR | {f"{Q}.lora_C.weight": A}, "changes tensor 'encoder.layers.0.self_attn.q_proj.lora_C.weight'"),
    (PAIR | {f"{Q}.lora_A.default.weight": A}, "q_proj.lora_A.default.weight'"),
    (PAIR | {f"{Q}.lora_A": A}, "changes tensor 'encoder.layers.0.self_attn.q_proj.lora_A'"),
    (PAIR | {f"{Q}.lora_magnitude_vector": draw(16)}, "contradict each other"),
    (PAIR | {f"{Q}.lora_B.bias": draw(16)}, "changes tensor 'encoder.layers.0.self_attn.q_proj.bias'"),
    (PAIR | {f"{FC1}.bias": draw(23)}, "tensor 'encoder.layers.1.fc1.bias' has shape (23,)"),
    (PAIR | {"base_model.model.model.encoder.layers.9.fc1.weight": A}, "'encoder.layers.9.fc1.weight'"),
    (PAIR | {"../../etc/passwd": A}, "changes tensor '../../etc/passwd'"),
    (PAIR | {"": A}, "changes tensor ''"),
    (PAIR | {f"other.{Q.removeprefix('base_model.model.model.')}.lora_A.weight": A}, "belong to two models"),
    (PAIR | {f"module.{Q}.lora_A.weight": A}, "two tensors have the same name"),
    ({f"{Q}.lora_A.weight": A.astype(np.int64), f"{Q}.lora_B.weight": B}, "has dtype I64"),
    (
        {f"base_model.model.model.{name}.weight": draw(40, 16) + len(name) for name in TABLES[:2]},
        "has two different tables",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "message"), TENSORS, ids=[message for _, message in TENSORS])
def test_tensors_that_cannot_be_merged_are_named(
    base: Path, adapter: Path, tensors: dict[str, np.ndarray], message: str
) -> None:
    assert message in failure(write_adapter(adapter, str(base), tensors))


def test_tied_adapters_that_differ_are_named(base: Path, adapter: Path) -> None:
    tensors = {}
    for i, name in enumerate(("model.shared", "model.decoder.embed_tokens")):
        tensors[f"base_model.model.{name}.lora_embedding_A"] = draw(2, 40) + i
        tensors[f"base_model.model.{name}.lora_embedding_B"] = draw(16, 2)
    write_adapter(adapter, str(base), tensors, ensure_weight_tying=True)
    assert "differ, though tied" in failure(adapter)


def test_adapter_without_weights_is_named(adapter: Path) -> None:
    (adapter / WEIGHTS).unlink()
    assert "no adapter weights found" in failure(adapter)


def test_a_huge_product_of_a_small_file_is_not_computed(base: Path, adapter: Path) -> None:
    """Factors of a few megabytes have a product of terabytes."""
    name = "base_model.model.model.shared"
    wide = {f"{name}.lora_embedding_A": np.zeros((2, 2**19), np.float16)}
    write_adapter(adapter, str(base), wide | {f"{name}.lora_embedding_B": np.zeros((2**19, 2), np.float16)})
    assert "has shape (524288, 524288)" in failure(adapter)


NOT_FINITE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "NaN": lambda x: x * np.float32(np.nan),
    "infinite": lambda x: x * np.float32(np.inf),
    "overflowing": lambda x: x * np.float32(1e38),
}


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_numbers_that_are_not_finite_are_found_when_generating(base: Path, adapter: Path, kind: str) -> None:
    from pegasusx_ref.errors import NumericsError

    write_adapter(adapter, str(base), {name: NOT_FINITE[kind](tensor) for name, tensor in PAIR.items()})
    model = load(adapter)
    with pytest.raises(NumericsError, match=r"weight encoder\.layers\.0\.self_attn\.q_proj\.weight is not finite"):
        model.generate([[5, 6, 7, 1]], max_new_tokens=3)
