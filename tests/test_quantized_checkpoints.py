"""Quantized checkpoints: those of transformers with bitsandbytes are read, ours are read by it; settings; damage."""

import json
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from test_adapters import write_adapter
from test_checkpoint import LAYOUTS, save_theirs

from pegasusx_ref import (
    DEMO_CHECKPOINT,
    BackendError,
    BitsAndBytesConfig,
    CheckpointError,
    InputError,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
    convert,
    pipeline,
)
from pegasusx_ref.backend.quantized import KINDS, QuantizedMatrix
from pegasusx_ref.checkpoint.bitsandbytes import kind_of
from pegasusx_ref.cli import main
from pegasusx_ref.model.weights import parameter_shapes

# Widths are multiples of the block size: on others bitsandbytes 0.50 dequantizes wrongly on a CPU (spec 17).
CONFIG = PegasusXConfig.preset(
    "tiny", vocab_size=130, d_model=64, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=128, decoder_ffn_dim=64
)
UNTIED = CONFIG.replace(tie_word_embeddings=False)
Q = "encoder.layers.0.self_attn.q_proj.weight"
FC1 = "decoder.layers.0.fc1.weight"
IDS, TARGET = np.arange(3, 40)[None], np.array([[0, 5, 9]])
WITHOUT_TOKENIZER = pytest.mark.filterwarnings("ignore:.*converted without a tokenizer:UserWarning")
SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True},
    "fp4-double": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def load(folder: Path, **arguments: Any) -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_pretrained(folder, backend="golden", **arguments)


def matrices(model: PegasusXModel | PegasusXForConditionalGeneration) -> dict[str, QuantizedMatrix]:
    names = parameter_shapes(model.config, model.has_head)
    return {name: m for name in names if isinstance(m := model.weights[name], QuantizedMatrix)}


def assert_equal_matrices(found: dict[str, QuantizedMatrix], expected: dict[str, QuantizedMatrix]) -> None:
    assert found.keys() == expected.keys()
    for name, matrix in expected.items():
        assert kind_of(found[name]) == kind_of(matrix), name
        assert found[name].codes.tobytes() == matrix.codes.tobytes(), name
        assert found[name].absmax.tobytes() == matrix.absmax.tobytes(), name


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    PegasusXForConditionalGeneration.from_random(CONFIG, seed=18).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untied")
    PegasusXForConditionalGeneration.from_random(UNTIED, seed=18).save_pretrained(folder)
    return folder


@pytest.fixture
def nf4(dense: Path, tmp_path: Path) -> Path:
    load(dense, quantization="nf4").save_pretrained(tmp_path / "nf4")
    return tmp_path / "nf4"


def load_theirs(transformers: Any, folder: Path, head: bool = True, **arguments: Any) -> Any:
    """Load with transformers; it computes in float32, not with bitsandbytes' bfloat16 kernel."""
    kind = transformers.PegasusXForConditionalGeneration if head else transformers.PegasusXModel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = kind.from_pretrained(folder, output_loading_info=True, **arguments)
    assert not any(info.values())
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def quantized_by_them(transformers: Any, folder: Path, kind: str, head: bool = True, **settings: Any) -> Any:
    config = transformers.BitsAndBytesConfig(**SETTINGS[kind], **settings)
    return load_theirs(transformers, folder, head, quantization_config=config)


def their_tensors(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items() if "quant_state" not in name}


def logits_of(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(IDS), decoder_input_ids=torch.from_numpy(TARGET)).logits.numpy()


# --- both directions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_on_load_as_by_transformers(
    kind: str, tied: bool, dense: Path, untied: Path, transformers: Any, bnb: Any, tmp_path: Path
) -> None:
    """The same matrices are quantized, to the same bits; each reads what the other saves; logits are equal."""
    source = dense if tied else untied
    theirs = quantized_by_them(transformers, source, kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(source, quantization=kind)
    assert len(matrices(ours)) == 16
    assert {kind_of(matrix) for matrix in matrices(ours).values()} == {kind}
    ours.save_pretrained(tmp_path / "ours")

    found = load_file(tmp_path / "ours" / "model.safetensors")
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if "quant_state" in name:
            ours_state, theirs_state = (json.loads(t.tobytes()) for t in (found[name], tensor))
            offset = (ours_state.pop("nested_offset", 0), theirs_state.pop("nested_offset", 0))
            np.testing.assert_allclose(*offset, rtol=1e-6)  # the mean is torch's
            assert ours_state == theirs_state
        elif "nested" in name:
            np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-7)
        elif "double" in kind and name.endswith("absmax"):
            assert np.abs(found[name].astype(int) - tensor).max() <= 1, name
        else:
            assert found[name].dtype == tensor.dtype, name
            assert found[name].shape == tensor.shape, name
            assert found[name].tobytes() == tensor.tobytes(), name
    assert_equal_matrices(matrices(load(tmp_path / "ours")), matrices(ours))

    read = load(tmp_path / "theirs")
    again = load_theirs(transformers, tmp_path / "ours")
    logits = logits_of(again)
    # LLM.int8 quantizes the activations as well.
    limit = (3e-2 if kind == "int8" else 1e-6) * np.abs(logits).max()
    assert np.abs(ours(IDS, decoder_input_ids=TARGET).logits - logits).max() <= limit
    assert np.abs(read(IDS, decoder_input_ids=TARGET).logits - logits_of(theirs)).max() <= limit


@pytest.mark.parametrize("storage", ["bfloat16", "float16", "float32", "int8"])
def test_codes_stored_in_another_dtype(storage: str, dense: Path, transformers: Any, bnb: Any, tmp_path: Path) -> None:
    quantized_by_them(transformers, dense, "nf4", bnb_4bit_quant_storage=storage).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")[f"model.{Q}"].dtype.name == storage
    assert_equal_matrices(matrices(load(tmp_path)), matrices(load(dense, quantization="nf4")))


@pytest.mark.parametrize("block_size", [32, 128, 4096])
def test_other_block_sizes(block_size: int, dense: Path, bnb: Any, tmp_path: Path) -> None:
    """transformers has no setting for it, but a file says its own."""
    import torch

    original = load(dense)
    tensors: dict[str, Any] = {name: torch.from_numpy(tensor.copy()) for name, tensor in original.state_dict().items()}
    expected = {}
    for name in matrices(load(dense, quantization="nf4")):
        codes, state = bnb.functional.quantize_4bit(tensors[name], blocksize=block_size, quant_type="nf4")
        expected[name] = QuantizedMatrix.quantize(tensors[name].numpy(), "nf4", block_size)
        tensors |= {name: codes} | {f"{name}.{part}": t for part, t in state.as_dict(packed=True).items()}
    config = CONFIG.replace(extra={"quantization_config": SETTINGS["nf4"]})
    config.save_pretrained(tmp_path)
    save_file({name: tensor.numpy() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    read = load(tmp_path)
    assert_equal_matrices(matrices(read), expected)
    read.save_pretrained(tmp_path / "again")
    assert_equal_matrices(matrices(load(tmp_path / "again")), expected)


@pytest.mark.parametrize("head", [True, False], ids=["with head", "without head"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["fp4-double", "int8"])
def test_every_layout_of_files_is_read(
    kind: str, layout: str, head: bool, dense: Path, transformers: Any, bnb: Any, tmp_path: Path
) -> None:
    theirs = quantized_by_them(transformers, dense, kind, head)
    save_theirs(theirs, tmp_path, layout)
    if layout.endswith("bin"):
        entries = json.loads((tmp_path / "config.json").read_text())
        assert entries["quantization_config"]["quant_method"] == "bitsandbytes"
    kind_of_model = PegasusXForConditionalGeneration if head else PegasusXModel
    ours = kind_of_model.from_pretrained(tmp_path, backend="golden")
    prefix = "model." if head else ""
    for name, tensor in their_tensors(theirs).items():
        if (matrix := matrices(ours).get(name.removeprefix(prefix))) is not None:
            assert matrix.codes.tobytes() == tensor.tobytes(), name
    assert len(matrices(ours)) == 16
    other = PegasusXModel if head else PegasusXForConditionalGeneration
    assert_equal_matrices(matrices(other.from_pretrained(tmp_path, backend="golden")), matrices(ours))


@WITHOUT_TOKENIZER
@pytest.mark.parametrize("size", [None, "8KB"])
@pytest.mark.parametrize("kind", KINDS)
def test_converted_checkpoints_load_in_transformers(
    kind: str, size: str | None, dense: Path, transformers: Any, bnb: Any, tmp_path: Path
) -> None:
    """The parts of a matrix are in one shard, which older versions of transformers need."""
    written = convert(dense, tmp_path, quantize=kind, max_shard_size=size)
    shards = [load_file(path).keys() for path in written if path.suffix == ".safetensors"]
    assert (len(shards) > 1) is (size is not None)
    for names in shards:
        assert all(f"{name}.quant_map" in names for name in names if f"{name}.absmax" in names)
    theirs, ours = load_theirs(transformers, tmp_path), load(tmp_path)
    expected = their_tensors(quantized_by_them(transformers, dense, kind))
    found = their_tensors(theirs)
    assert found.keys() == expected.keys()
    for name in (f"model.{Q}", f"model.{FC1}"):
        assert found[name].tobytes() == expected[name].tobytes()
    assert_equal_matrices(matrices(ours), matrices(load(dense, quantization=kind)))
    limit = (3e-2 if kind == "int8" else 1e-6) * np.abs(logits_of(theirs)).max()
    assert np.abs(ours(IDS, decoder_input_ids=TARGET).logits - logits_of(theirs)).max() <= limit


# --- what is quantized -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_embedding_is_read_here_only(
    kind: str, untied: Path, transformers: Any, bnb: Any, tmp_path: Path
) -> None:
    model = load(untied, quantization=kind, quantize_embedding=True)
    tables = {name for name in matrices(model) if not name.startswith(("encoder.layers", "decoder.layers"))}
    assert tables == {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    model.save_pretrained(tmp_path)
    assert_equal_matrices(matrices(load(tmp_path)), matrices(model))
    with pytest.raises(Exception):  # noqa: B017, PT011 - of transformers' choice, but never a silent load
        load_theirs(transformers, tmp_path)


@pytest.mark.parametrize(
    "skipped",
    [["fc1"], ["encoder"], ["model.encoder.layers.0"], ["q_proj", "fc2"], [r"model\.decoder.*"], ["model.encoder.lay"]],
)
def test_skipped_modules_are_those_of_transformers(
    skipped: list[str], dense: Path, transformers: Any, bnb: Any, tmp_path: Path
) -> None:
    settings = SETTINGS["nf4"] | {"llm_int8_skip_modules": [*skipped, "lm_head"]}
    theirs = quantized_by_them(transformers, dense, "nf4", llm_int8_skip_modules=settings["llm_int8_skip_modules"])
    ours = load(dense, quantization_config=settings)
    expected = {name for name, tensor in their_tensors(theirs).items() if tensor.dtype == np.uint8}
    assert {f"model.{name}" for name in matrices(ours)} == expected
    ours.save_pretrained(tmp_path)
    again = load_theirs(transformers, tmp_path)
    assert {name for name, tensor in their_tensors(again).items() if tensor.dtype == np.uint8} == expected
    assert np.abs(logits_of(again) - logits_of(theirs)).max() == 0


def test_a_number_that_is_not_finite_is_named(dense: Path, tmp_path: Path) -> None:
    for value, kind in ((np.nan, "nf4"), (np.inf, "fp4-double"), (-np.inf, "int8"), (1e5, "int8")):
        shutil.copytree(dense, tmp_path, dirs_exist_ok=True)
        tensors = {name: tensor.copy() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
        tensors[f"model.{FC1}"][5, 7] = value
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(
            CheckpointError, match=rf"tensor '{FC1}'\[5, 7\] is .*: {kind.split('-')[0]} takes finite numbers"
        ):
            load(tmp_path, quantization=kind)


def test_quantized_checkpoints_are_quantized_once(nf4: Path) -> None:
    expected = matrices(load(nf4))
    assert_equal_matrices(matrices(load(nf4, quantization="nf4")), expected)
    more = load(nf4, quantization="nf4", quantize_embedding=True)
    assert matrices(more).keys() - expected.keys() == {"shared.weight"}
    for kind in ("nf4-double", "fp4", "int8"):
        with pytest.raises(CheckpointError, match=f"is already quantized as nf4, not {kind}: omit the quantization"):
            load(nf4, quantization=kind)


def test_one_tensor_at_a_time_is_in_full_precision(tmp_path: Path) -> None:
    """What loading takes beyond the result does not depend on the number of layers."""
    beyond, size = {}, 256 * 1024 * 4
    for layers in (1, 3):
        config = CONFIG.replace(d_model=256, encoder_ffn_dim=1024, encoder_layers=layers)
        folder = tmp_path / str(layers)
        PegasusXForConditionalGeneration.from_random(config).save_pretrained(folder)
        tracemalloc.start()
        model = load(folder, quantization="nf4")
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        beyond[layers] = peak - kept
        assert kept <= sum(m.nbytes for m in matrices(model).values()) + 2**20
    assert beyond[3] <= 1.05 * beyond[1], beyond
    assert size <= beyond[1] <= 10 * size, beyond


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_spelling_of_a_kind(kind: str, dense: Path, transformers: Any, bnb: Any) -> None:
    expected = matrices(load(dense, quantization=kind))
    theirs = transformers.BitsAndBytesConfig(**SETTINGS[kind])
    for settings in (BitsAndBytesConfig(**SETTINGS[kind]), SETTINGS[kind], theirs, theirs.to_dict()):
        assert_equal_matrices(matrices(load(dense, quantization_config=settings)), expected)
    if kind in ("fp4", "int8"):
        assert_equal_matrices(matrices(load(dense, **SETTINGS[kind])), expected)


def test_settings_are_written_as_by_transformers(
    nf4: Path, dense: Path, transformers: Any, bnb: Any, tmp_path: Path
) -> None:
    quantized_by_them(transformers, dense, "nf4").save_pretrained(tmp_path)
    found, expected = (
        json.loads((folder / "config.json").read_text())["quantization_config"] for folder in (nf4, tmp_path)
    )
    assert found == {name: value for name, value in expected.items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_8bit and load_in_4bit are both True: choose one"),
        ({}, "quantization_config has neither load_in_4bit=True nor load_in_8bit=True: choose one"),
        ({"load_in_4bit": 1}, "load_in_4bit=1 must be True or False"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf3"}, "bnb_4bit_quant_type='nf3' must be 'nf4' or 'fp4'"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight=True is for training"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "int8"}, "bnb_4bit_compute_dtype='int8' must be one of"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "int4"}, "bnb_4bit_quant_storage='int4' must be one of"),
        ({"load_in_4bit": True, "llm_int8_skip_modules": "fc1"}, "llm_int8_skip_modules='fc1' must be a list of names"),
        ({"load_in_4bit": True, "llm_int8_skip_modules": ["("]}, "no regular expression"),
        ({"load_in_8bit": True, "llm_int8_threshold": "6"}, "llm_int8_threshold='6' must be a number"),
        ({"load_in_4bit": True, "bits": 4}, "quantization_config has no setting 'bits': choose from load_in_8bit"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method='gptq' is not supported: pass a BitsAndBytesConfig"),
        (4, "quantization_config=4 must be a BitsAndBytesConfig"),
    ],
)
def test_settings_that_are_refused(settings: Any, message: str, dense: Path) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        load(dense, quantization_config=settings)


def test_arguments_that_are_refused(dense: Path) -> None:
    for arguments, message in (
        (
            {"quantization": "nf5"},
            "quantization='nf5' is unknown: choose one of nf4, nf4-double, fp4",
        ),
        ({"quantization": 4}, "quantization=4 is unknown"),
        ({"quantize_embedding": True}, "quantize_embedding=True needs a quantization"),
        ({"quantize_embedding": 1, "quantization": "nf4"}, "quantize_embedding=1 must be True or False"),
        ({"quantization": "nf4", "quantization_config": SETTINGS["nf4"]}, "pass one of quantization, quantization_con"),
        ({"load_in_4bit": True, "quantization": "nf4"}, "pass one of quantization"),
    ):
        with pytest.raises(InputError, match=message):
            load(dense, **arguments)
    with pytest.raises(InputError, match="a loaded model cannot be quantized"):
        pipeline(model=load(DEMO_CHECKPOINT), tokenizer=DEMO_CHECKPOINT, quantization="nf4")


def test_a_threshold_without_effect_is_named() -> None:
    with pytest.warns(UserWarning, match="llm_int8_threshold=3.5 has no effect: activations are not quantized here"):
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=3.5)


def test_dtype_is_the_argument_or_the_compute_dtype_or_float32(dense: Path) -> None:
    settings = SETTINGS["nf4"] | {"bnb_4bit_compute_dtype": np.float64}
    assert load(dense, quantization_config=settings).dtype == "float64"
    assert load(dense, quantization_config=settings, dtype="float32").dtype == "float32"
    assert load(dense, quantization_config=SETTINGS["nf4"]).dtype == "float32"


def test_half_precision_is_a_wish_of_the_documentation_s_spelling_only(dense: Path) -> None:
    settings = SETTINGS["nf4"] | {"bnb_4bit_compute_dtype": "bfloat16"}
    for dtype in (None, "float16"):
        with pytest.warns(UserWarning, match=f"backend 'golden' does not compute in {dtype or 'bfloat16'}: the quant"):
            assert load(dense, quantization_config=settings, dtype=dtype).dtype == "float32"
    with pytest.raises(BackendError, match="does not compute in 'int4'"):
        load(dense, quantization_config=settings, dtype="int4")
    with pytest.raises(BackendError, match="backend 'golden' does not compute in 'bfloat16'"):
        load(dense, quantization="nf4", dtype="bfloat16")


# --- conversion and adapters -----------------------------------------------------------------------------------------


@WITHOUT_TOKENIZER
def test_conversion_keeps_dequantizes_or_adds(nf4: Path, dense: Path, tmp_path: Path) -> None:
    expected = load(nf4)
    convert(nf4, tmp_path / "kept")
    kept, source = (load_file(folder / "model.safetensors") for folder in (tmp_path / "kept", nf4))
    assert {name: t.tobytes() for name, t in kept.items()} == {name: t.tobytes() for name, t in source.items()}

    convert(nf4, tmp_path / "dense", "float32")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    found = load(tmp_path / "dense").state_dict()
    assert all(found[name].tobytes() == tensor.tobytes() for name, tensor in expected.state_dict().items())

    convert(nf4, tmp_path / "more", "bfloat16", quantize="nf4", quantize_embedding=True)
    more = load(tmp_path / "more")
    assert more.config.dtype == "bfloat16"
    assert matrices(more).keys() - matrices(expected).keys() == {"shared.weight"}
    assert matrices(more)[Q].codes.tobytes() == matrices(expected)[Q].codes.tobytes()
    with pytest.raises(CheckpointError, match="is already quantized as nf4, not int8"):
        convert(nf4, tmp_path / "other", quantize="int8")
    assert not (tmp_path / "other").exists() or not any((tmp_path / "other").iterdir())
    with pytest.raises(InputError, match="quantization='int7' is unknown"):
        convert(dense, tmp_path / "other", quantize="int7")


@WITHOUT_TOKENIZER
def test_a_half_precision_checkpoint_says_so_to_bitsandbytes(dense: Path, tmp_path: Path) -> None:
    for dtype, expected in (("bfloat16", "bfloat16"), ("float64", "float32")):
        convert(dense, tmp_path, dtype, quantize="nf4")
        state = load_file(tmp_path / "model.safetensors")[f"model.{Q}.quant_state.bitsandbytes__nf4"]
        assert json.loads(state.tobytes())["dtype"] == expected
        entries = json.loads((tmp_path / "config.json").read_text())
        assert entries["quantization_config"]["bnb_4bit_compute_dtype"] == expected
        assert entries["dtype"] == dtype


@WITHOUT_TOKENIZER
def test_command_line(nf4: Path, dense: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.stdout

    run("convert", dense, tmp_path / "out", "--quantize", "nf4")
    assert_equal_matrices(matrices(load(tmp_path / "out")), matrices(load(nf4)))
    run("convert", dense, tmp_path / "out", "--quantize", "int8", "--quantize-embedding")
    assert len(matrices(load(tmp_path / "out"))) == 17
    text = tmp_path / "text.txt"
    text.write_text("Shows the clock of the machine in a window.")
    arguments = ("summarize", text, "--backend", "golden", "--no-progress", "--max-new-tokens", 5, "--num-beams", 1)
    summary = run(*arguments, "--quantization", "int8", "--quantize-embedding")
    model = load(DEMO_CHECKPOINT, quantization="int8", quantize_embedding=True)
    expected = pipeline(model=model, tokenizer=DEMO_CHECKPOINT)(text.read_text(), max_new_tokens=5, num_beams=1)
    assert summary == expected[0]["summary_text"] + "\n"


def test_an_adapter_needs_a_dense_base(nf4: Path, dense: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    place = f"base_model.model.model.{Q.removesuffix('.weight')}"
    shapes = {f"{place}.lora_A.weight": (2, 64), f"{place}.lora_B.weight": (64, 2)}
    update = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    adapter = write_adapter(tmp_path / "adapter", str(nf4), update)
    with pytest.raises(CheckpointError, match="is quantized, which cannot be merged: write the place of the original"):
        load(adapter)
    adapter = write_adapter(tmp_path / "other", str(dense), update)
    merged = load(adapter).state_dict()[Q]
    found = matrices(load(adapter, quantization="nf4"))[Q]
    assert found.codes.tobytes() == QuantizedMatrix.quantize(merged, "nf4").codes.tobytes()


# --- damage ----------------------------------------------------------------------------------------------------------

Tensors = dict[str, np.ndarray[Any, Any]]
PLACE = f"model.{Q}"
STATE = f"{PLACE}.quant_state.bitsandbytes__"
SCALES = PLACE.removesuffix("weight")


def state(**changes: Any) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        (name,) = (name for name in tensors if name.startswith(STATE))
        entries = json.loads(tensors[name].tobytes()) | changes
        text = json.dumps({key: value for key, value in entries.items() if value is not ...})
        tensors[name] = np.frombuffer(text.encode(), np.uint8)

    return damage


def put(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return damage


def moved(name: str, new: str) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        tensors[new] = tensors.pop(name)

    return damage


def without(name: str) -> Callable[[Tensors], None]:
    def damage(tensors: Tensors) -> None:
        del tensors[name]

    return damage


def overflow(tensors: Tensors) -> None:
    for name in ("absmax", "quant_map"):
        tensors[f"{PLACE}.nested_{name}"].fill(1e30)


NF4_STATE = f"{STATE}nf4"
DAMAGES: dict[str, tuple[str, Callable[[Tensors], None], str]] = {
    "no absmax": ("nf4", without(f"{PLACE}.absmax"), "q_proj.weight.absmax' is missing"),
    "no quant_map": ("nf4", without(f"{PLACE}.quant_map"), "quant_map' is missing"),
    "no codes": ("nf4", without(PLACE), "is missing"),
    "no state": ("nf4", without(NF4_STATE), "has dtype uint8, but no other says what its codes stand for"),
    "short codes": ("nf4", put(PLACE, lambda t: t[:-1]), r"2,047 bytes of codes for shape \[64, 64\]"),
    "short absmax": ("nf4", put(f"{PLACE}.absmax", lambda t: t[1:]), "absmax' of 63 numbers, expected 64"),
    "absmax of integers": ("nf4", put(f"{PLACE}.absmax", lambda t: t.astype(np.uint8)), "absmax' of dtype uint8"),
    "absmax is NaN": ("nf4", put(f"{PLACE}.absmax", lambda t: t * np.nan), "has a number that is not finite"),
    "another code book": ("nf4", put(f"{PLACE}.quant_map", lambda t: t[::-1]), "is not that of nf4"),
    "no JSON": (
        "nf4",
        put(NF4_STATE, lambda t: t[1:]),
        "not matrix 'encoder.layers.0.self_attn.q_proj.wei",
    ),
    "a JSON list": ("nf4", put(NF4_STATE, lambda t: np.frombuffer(b"[]", np.uint8)), "it is of type list"),
    "a state of floats": ("nf4", put(NF4_STATE, lambda t: t.astype(np.float32)), "of dtype float32, expected uint8"),
    "a state of 1 MB": ("nf4", put(NF4_STATE, lambda t: np.full(2**20, 32, np.uint8)), "a quant_state of 1,048,576 b"),
    "nested deeply": (
        "nf4",
        put(NF4_STATE, lambda t: np.frombuffer(b'{"a": ' + b"[" * 9000 + b"]" * 9000 + b"}", np.uint8)),
        "nested too deeply",
    ),
    "another type": ("nf4", state(quant_type="fp4"), "quant_type 'fp4', but nf4, fp4 are read"),
    "type of a list": ("nf4", state(quant_type=["nf4"]), "quant_type"),
    "an unknown type": ("nf4", moved(NF4_STATE, f"{STATE}nf3"), "quant_type 'nf4'"),
    "no type": ("nf4", state(quant_type=...), "'quant_type' is missing"),
    "no shape": ("nf4", state(shape=...), "'shape' is missing"),
    "null shape": ("nf4", state(shape=None), "shape None"),
    "one side": ("nf4", state(shape=[4096]), r"shape \[4096\]"),
    "fractional sides": ("nf4", state(shape=[64.0, 64]), r"shape \[64.0, 64\]"),
    "negative sides": ("nf4", state(shape=[-64, -64]), r"shape \[-64, -64\]"),
    "huge sides": ("nf4", state(shape=[10**400, 64]), "shape"),
    "transposed": ("nf4", state(shape=[32, 128]), r"has shape \(32, 128\), but config.json implies \(64, 64\)"),
    "odd blocks": ("nf4", state(blocksize=63), "blocksize 63, but 32, 64, 128, 256, 512, 1024, 2048, 4096 are read"),
    "other blocks": ("nf4", state(blocksize=128), "absmax' of 64 numbers, expected 32"),
    "blocks of a word": ("nf4", state(blocksize="64"), "blocksize '64'"),
    "no offset": ("nf4-double", state(nested_offset=...), "'nested_offset' is missing"),
    "an offset beyond float32": ("nf4-double", state(nested_offset=1e300), r"nested_offset 1e\+300"),
    "an offset of a word": ("nf4-double", state(nested_offset="1"), "nested_offset '1'"),
    "an offset of many digits": ("nf4-double", state(nested_offset=10**400), "too large"),
    "no nested blocks": ("nf4-double", state(nested_blocksize=...), "'nested_blocksize' is missing"),
    "short nested map": ("nf4-double", put(f"{PLACE}.nested_quant_map", lambda t: t[:9]), "of 9 numbers, expected 256"),
    "infinite nested map": ("nf4-double", put(f"{PLACE}.nested_quant_map", lambda t: t / 0), "not finite"),
    "huge nested scales": ("nf4-double", overflow, "absmax' has a number that is not finite"),
    "no nested scales": ("nf4-double", without(f"{PLACE}.nested_absmax"), "absmax' of dtype uint8"),
    "no SCB": ("int8", without(f"{SCALES}SCB"), "has dtype int8, but no other says what its codes stand for"),
    "short SCB": ("int8", put(f"{SCALES}SCB", lambda t: t[1:]), r"codes of shape \(64, 64\) with 63 scales"),
    "SCB is infinite": ("int8", put(f"{SCALES}SCB", lambda t: t * np.inf), "not finite"),
    "codes of uint8": ("int8", put(PLACE, lambda t: t.view(np.uint8)), "of dtype uint8, expected int8"),
    "one row of codes": ("int8", put(PLACE, lambda t: t.reshape(-1)), r"codes of shape \(4096,\)"),
    "another format": ("int8", put(f"{SCALES}weight_format", lambda t: t + np.uint8(1)), "weight_format"),
    "a quantized bias": ("int8", moved(PLACE, "model.encoder.layers.0.fc1.bias"), "has dtype int8|is missing"),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_files_end_in_one_clear_error(case: str, dense: Path, tmp_path: Path) -> None:
    kind, damage, message = DAMAGES[case]
    load(dense, quantization=kind).save_pretrained(tmp_path)
    tensors = {name: tensor.copy() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as found:
        load(tmp_path)
    assert str(tmp_path) in str(found.value)
    assert "\n" not in str(found.value)


def test_two_kinds_and_other_tensors_are_refused(nf4: Path, dense: Path, tmp_path: Path) -> None:
    load(dense, quantization="int8").save_pretrained(tmp_path / "int8")
    tensors = load_file(nf4 / "model.safetensors")
    other = load_file(tmp_path / "int8" / "model.safetensors")
    place = f"model.{FC1}"
    mixed = {name: t for name, t in tensors.items() if not name.startswith(place)}
    mixed |= {name: t for name, t in other.items() if name.startswith(place.removesuffix("weight"))}
    save_file(mixed, nf4 / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is quantized as nf4, .* as int8|is quantized as int8, .* as nf4"):
        load(nf4)
    matrix = QuantizedMatrix.quantize(tensors["model.encoder.embed_global.weight"], "int8")
    scales = {"model.encoder.embed_global.weight": matrix.codes, "model.encoder.embed_global.SCB": matrix.absmax}
    save_file(other | scales, tmp_path / "int8" / "model.safetensors")
    with pytest.raises(CheckpointError, match="only linear layers and embedding tables can be"):
        load(tmp_path / "int8")


@pytest.mark.parametrize("method", ["gptq", "awq", 4, None])
def test_other_methods_are_named(method: Any, dense: Path, tmp_path: Path) -> None:
    shutil.copytree(dense, tmp_path, dirs_exist_ok=True)
    entries = json.loads((tmp_path / "config.json").read_text())
    entries["quantization_config"] = {"quant_method": method}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=f"quantized by {method!r}, but only bitsandbytes is read"):
        load(tmp_path)


def test_integers_of_a_checkpoint_that_is_not_quantized(nf4: Path) -> None:
    entries = json.loads((nf4 / "config.json").read_text())
    del entries["quantization_config"]
    (nf4 / "config.json").write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="has dtype U8: expected one of F64, F32, F16, BF16"):
        load(nf4)
