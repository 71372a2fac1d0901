"""Model folders: every layout that transformers writes, bit for bit; writing back; every fault by name."""

import json
import mmap
import shutil
import struct
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegasusx_ref import (
    CheckpointError,
    ConfigError,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
)
from pegasusx_ref.model.weights import parameter_shapes

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
LAYOUTS = ("safetensors", "sharded safetensors", "bin", "sharded bin")
DTYPES = ("float32", "bfloat16", "float16", "float64")
EMBEDDING = "shared.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
SMALL = PegasusXConfig.preset(
    "tiny",
    vocab_size=40,
    d_model=16,
    encoder_ffn_dim=24,
    decoder_ffn_dim=20,
    decoder_attention_heads=2,
    encoder_layers=2,
    decoder_layers=1,
)
# A tensor of the model to damage, under its name in the file and in messages.
VICTIM = "encoder.layers.1.fc1.bias"

Tensors = dict[str, np.ndarray[Any, Any]]


def their_model(transformers: Any, head: bool, dtype: str = "float32", **changes: Any) -> Any:
    """A model of transformers, every tensor random."""
    import torch

    kind = transformers.PegasusXForConditionalGeneration if head else transformers.PegasusXModel
    values = SMALL.replace(**changes).to_dict()
    values.pop("model_type")
    model = kind(transformers.PegasusXConfig(**values)).eval()
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for parameter in model.parameters():
            shape = tuple(parameter.shape)
            # All magnitudes that the dtype can represent, so that a detour through a narrower dtype would be found.
            scale = 1.0 if dtype == "float16" else 2.0 ** rng.integers(-60, 60, shape)
            parameter.data = torch.from_numpy(rng.standard_normal(shape) * scale).to(getattr(torch, dtype))
    return model


def save_theirs(model: Any, folder: Path, layout: str, keep_copies: bool = True) -> None:
    """Save as transformers 5 does, or as older versions did."""
    import torch

    if layout.endswith("safetensors"):
        model.save_pretrained(folder, **({"max_shard_size": "6KB"} if layout.startswith("sharded") else {}))
        return
    model.config.dtype = model.dtype
    model.config.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if not keep_copies:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COPIES)}
    if layout == "bin":
        torch.save(tensors, folder / PICKLE)
        return
    weight_map = {name: f"pytorch_model-{i % 3 + 1:05}-of-00003.bin" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        torch.save({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / f"{PICKLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def ours_of(head: bool) -> Any:
    return PegasusXForConditionalGeneration if head else PegasusXModel


def assert_same_tensors(ours: Any, theirs: Any, dtype: str) -> None:
    """Every tensor of both, converted as torch converts, bit for bit."""
    import torch

    expected = {
        name.removeprefix("model."): tensor.to(getattr(torch, dtype)).numpy()
        for name, tensor in theirs.state_dict().items()
    }
    if ours.config.tie_word_embeddings:
        expected = {name: tensor for name, tensor in expected.items() if name not in COPIES}
    found = ours.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == dtype, name
        assert found[name].tobytes() == tensor.tobytes(), name


# --- reading what transformers writes --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", [True, False], ids=["with prefix", "without prefix"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_equals_what_transformers_saved(
    transformers: Any, tmp_path: Path, layout: str, head: bool, dtype: str
) -> None:
    theirs = their_model(transformers, head, dtype)
    save_theirs(theirs, tmp_path, layout)
    files = {path.name for path in tmp_path.iterdir()}
    assert any(name.endswith("index.json") for name in files) is layout.startswith("sharded")
    ours = ours_of(head).from_pretrained(tmp_path, dtype="float64")
    assert ours.config.dtype == dtype
    assert_same_tensors(ours, theirs, "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_is_the_default_and_rounds_as_torch_does(transformers: Any, tmp_path: Path, dtype: str) -> None:
    theirs = their_model(transformers, True, dtype)
    theirs.save_pretrained(tmp_path)
    ours = PegasusXForConditionalGeneration.from_pretrained(str(tmp_path))
    assert ours.dtype == "float32"
    assert_same_tensors(ours, theirs, "float32")


@pytest.mark.parametrize("ours_has_head", [True, False])
def test_either_model_loads_the_others_checkpoint(transformers: Any, tmp_path: Path, ours_has_head: bool) -> None:
    theirs = their_model(transformers, not ours_has_head)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(ours_has_head).from_pretrained(tmp_path)
    assert_same_tensors(ours, theirs, "float32")


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("layout", ["bin", "sharded bin"])
def test_absent_copies_of_the_embedding_are_the_embedding(
    transformers: Any, tmp_path: Path, layout: str, head: bool
) -> None:
    theirs = their_model(transformers, head)
    save_theirs(theirs, tmp_path, layout, keep_copies=False)
    assert_same_tensors(ours_of(head).from_pretrained(tmp_path), theirs, "float32")


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_untied_embeddings_stay_four_tensors(transformers: Any, tmp_path: Path, layout: str, head: bool) -> None:
    theirs = their_model(transformers, head, tie_word_embeddings=False)
    save_theirs(theirs, tmp_path, layout)
    ours = ours_of(head).from_pretrained(tmp_path)
    assert not ours.config.tie_word_embeddings
    state = ours.state_dict()
    tables = [state[name].tobytes() for name in (EMBEDDING, *COPIES) if name in state]
    assert len(tables) == (4 if head else 3)
    assert len(set(tables)) > 1
    assert_same_tensors(ours, theirs, "float32")


def write_safetensors(folder: Path, tensors: Tensors, config: PegasusXConfig = SMALL) -> None:
    from safetensors.numpy import save_file

    config.save_pretrained(folder)
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / SAFETENSORS, {"format": "pt"})


def random_tensors(config: PegasusXConfig = SMALL, prefix: str = "model.") -> Tensors:
    rng = np.random.default_rng(3)
    return {
        name if name == "lm_head.weight" else prefix + name: 0.3 * rng.standard_normal(shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def logits_of_both(transformers: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    import torch

    rng = np.random.default_rng(11)
    source, target = rng.integers(2, 40, (2, 19)), rng.integers(2, 40, (2, 5))
    ours = PegasusXForConditionalGeneration.from_pretrained(folder, dtype="float64")
    theirs = transformers.PegasusXForConditionalGeneration.from_pretrained(folder).double().eval()
    with torch.no_grad():
        logits = theirs(torch.tensor(source), decoder_input_ids=torch.tensor(target)).logits.numpy()
    return ours(source, decoder_input_ids=target).logits, logits


def test_equal_copies_in_the_file_are_no_contradiction(tmp_path: Path) -> None:
    tensors = random_tensors()
    copies = {name if name == "lm_head.weight" else "model." + name: tensors["model." + EMBEDDING] for name in COPIES}
    write_safetensors(tmp_path, tensors | copies)
    ours = PegasusXForConditionalGeneration.from_pretrained(tmp_path)  # a warning would be an error
    assert ours.config.tie_word_embeddings
    assert not set(COPIES) & set(ours.state_dict())


@pytest.mark.parametrize("only", ["lm_head.weight", "model.encoder.embed_tokens.weight"])
def test_a_single_copy_is_used_as_the_embedding(transformers: Any, tmp_path: Path, only: str) -> None:
    tensors = random_tensors()
    tensors[only] = tensors.pop("model." + EMBEDDING)
    write_safetensors(tmp_path, tensors)
    ours, theirs = logits_of_both(transformers, tmp_path)
    assert np.abs(ours - theirs).max() <= 1e-10 * np.abs(theirs).max()


@pytest.mark.parametrize("copy", COPIES)
def test_copies_that_differ_although_tied_are_used_as_stored(transformers: Any, tmp_path: Path, copy: str) -> None:
    tensors = random_tensors()
    other = np.random.default_rng(5).standard_normal((40, 16)).astype(np.float32)
    write_safetensors(tmp_path, tensors | {copy if copy == "lm_head.weight" else "model." + copy: other})
    with pytest.warns(UserWarning, match=rf"{copy} differ from shared\.weight although config\.json ties them"):
        ours, theirs = logits_of_both(transformers, tmp_path)
    assert np.abs(ours - theirs).max() <= 1e-10 * np.abs(theirs).max()
    with pytest.warns(UserWarning, match="tie_word_embeddings=false"):
        model = PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    assert not model.config.tie_word_embeddings
    # Saved again, it is untied in its own config.json, and there is no warning.
    model.save_pretrained(tmp_path / "again")
    again = PegasusXForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert again.state_dict()[copy].tobytes() == other.tobytes()
    assert again.state_dict()[EMBEDDING].tobytes() == tensors["model." + EMBEDDING].tobytes()


def test_position_tables_and_version_marks_are_ignored(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    old = {
        "model.encoder.embed_positions.weight": rng.random((30, 16), dtype=np.float32),
        "model.decoder.embed_positions.weight": rng.random((30, 16), dtype=np.float32),
        "model.encoder.version": rng.random(1, dtype=np.float32),
    }
    write_safetensors(tmp_path, random_tensors() | old)
    assert set(PegasusXForConditionalGeneration.from_pretrained(tmp_path).state_dict()) == set(parameter_shapes(SMALL))


def test_tensors_of_several_dtypes_may_have_any_order_in_the_file(tmp_path: Path) -> None:
    config = SMALL.replace(encoder_ffn_dim=21)
    tensors = random_tensors(config)
    # Half-precision tensors of odd length in front leave all others at odd multiples of 2.
    half_precision = {f"model.encoder.layers.{i}.fc1.bias" for i in range(2)}
    tensors |= {name: tensors[name].astype(np.float16) for name in half_precision}
    tensors["model.decoder.layer_norm.bias"] = tensors["model.decoder.layer_norm.bias"].astype(np.float64) / 3
    order = [min(half_precision), *sorted(set(tensors) - half_precision), max(half_precision)]
    codes = {"float16": "F16", "float32": "F32", "float64": "F64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name in order:
        tensor = tensors[name]
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": codes[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / SAFETENSORS).write_bytes(struct.pack("<Q", len(text)) + text + data)
    config.save_pretrained(tmp_path)
    found = PegasusXForConditionalGeneration.from_pretrained(tmp_path, dtype="float64").state_dict()
    for name, tensor in tensors.items():
        assert found[name.removeprefix("model.")].tobytes() == tensor.astype(np.float64).tobytes(), name


def test_old_torch_format_is_read_too(transformers: Any, tmp_path: Path) -> None:
    import torch

    theirs = their_model(transformers, True)
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / PICKLE, _use_new_zipfile_serialization=False)
    assert_same_tensors(PegasusXForConditionalGeneration.from_pretrained(tmp_path), theirs, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_in_a_bin_file_are_tensors_too(transformers: Any, tmp_path: Path, dtype: str) -> None:
    import torch

    theirs = their_model(transformers, True, dtype)
    theirs.config.save_pretrained(tmp_path)
    torch.save(dict(theirs.named_parameters()), tmp_path / PICKLE)
    assert_same_tensors(PegasusXForConditionalGeneration.from_pretrained(tmp_path), theirs, "float32")


def test_safetensors_take_precedence_over_bin(transformers: Any, tmp_path: Path) -> None:
    theirs = their_model(transformers, True)
    theirs.save_pretrained(tmp_path)
    (tmp_path / PICKLE).write_bytes(b"not to be opened")
    assert_same_tensors(PegasusXForConditionalGeneration.from_pretrained(tmp_path), theirs, "float32")


def test_dtype_auto_is_the_checkpoints_own(transformers: Any, tmp_path: Path) -> None:
    their_model(transformers, True, "float64").save_pretrained(tmp_path)
    assert PegasusXForConditionalGeneration.from_pretrained(tmp_path, dtype="auto").dtype == "float64"


# --- memory ----------------------------------------------------------------------------------------------------------


def bottom(array: Any) -> Any:
    while isinstance(array, np.ndarray | memoryview):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of some megabytes."""
    folder = tmp_path_factory.mktemp("wide")
    PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny", vocab_size=40_000)).save_pretrained(
        folder
    )
    assert (folder / SAFETENSORS).stat().st_size > 5e6
    return folder


def test_loading_float32_as_float32_maps_every_tensor(wide_folder: Path) -> None:
    model = PegasusXForConditionalGeneration.from_pretrained(wide_folder)
    for name, tensor in model.state_dict().items():
        assert isinstance(bottom(tensor), mmap.mmap), name
        assert type(tensor) is np.ndarray, name
        assert not tensor.flags.writeable, name
    for name in COPIES:
        assert np.shares_memory(model.weights[name], model.weights[EMBEDDING])


@pytest.mark.parametrize(("dtype", "copies"), [("float32", 0.0), ("float64", 2.0)])
def test_loading_allocates_only_what_it_converts(wide_folder: Path, dtype: str, copies: float) -> None:
    size = (wide_folder / SAFETENSORS).stat().st_size
    PegasusXForConditionalGeneration.from_pretrained(wide_folder, dtype=dtype)  # modules are imported by now
    tracemalloc.start()
    try:
        model = PegasusXForConditionalGeneration.from_pretrained(wide_folder, dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (copies - 0.02) * size <= peak <= (copies + 0.1) * size
    assert model.num_parameters() * 4 <= size


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_transformers_loads_bit_for_bit_what_is_saved(
    transformers: Any, tmp_path: Path, head: bool, tied: bool, dtype: str
) -> None:
    ours = ours_of(head).from_random(SMALL.replace(tie_word_embeddings=tied), seed=4, dtype=dtype)
    ours.save_pretrained(tmp_path / "new" / "folder")
    auto = transformers.AutoModelForSeq2SeqLM if head else transformers.AutoModel
    theirs, report = auto.from_pretrained(tmp_path / "new" / "folder", dtype="auto", output_loading_info=True)
    assert type(theirs).__name__ == type(ours).__name__ == theirs.config.architectures[0]
    assert str(theirs.dtype) == f"torch.{dtype}"
    assert not any(report.values()), report
    assert_same_tensors(ours, theirs, dtype)
    assert theirs.config.tie_word_embeddings is tied


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saving_over_the_source_folder_is_safe(transformers: Any, tmp_path: Path, layout: str) -> None:
    theirs = their_model(transformers, True)
    save_theirs(theirs, tmp_path, layout)
    ours = PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    for _ in range(2):
        ours.save_pretrained(tmp_path)
        assert_same_tensors(ours, theirs, "float32")  # the mapped tensors are still those of the old file
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    again = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_tensors(PegasusXForConditionalGeneration.from_pretrained(tmp_path), again, "float32")
    assert_same_tensors(ours, again, "float32")


def test_saving_another_model_leaves_the_mapped_one_alone(tmp_path: Path) -> None:
    first, second = (PegasusXForConditionalGeneration.from_random(SMALL, seed=seed) for seed in (1, 2))
    first.save_pretrained(tmp_path)
    mapped = PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    second.save_pretrained(tmp_path)
    for model, expected in ((mapped, first), (PegasusXForConditionalGeneration.from_pretrained(tmp_path), second)):
        found = model.state_dict()
        assert all(np.array_equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def test_file_has_the_format_metadata_that_transformers_requires(tmp_path: Path) -> None:
    from safetensors import safe_open

    PegasusXForConditionalGeneration.from_random(SMALL).save_pretrained(tmp_path)
    with safe_open(tmp_path / SAFETENSORS, framework="np") as file:
        assert file.metadata()["format"] == "pt"  # transformers before 5 refuses a file without it


def test_new_dtype_written_over_shards_is_what_is_read(transformers: Any, tmp_path: Path) -> None:
    theirs = their_model(transformers, True, "bfloat16")
    save_theirs(theirs, tmp_path, "sharded safetensors")
    PegasusXForConditionalGeneration.from_pretrained(tmp_path, dtype="float64").save_pretrained(tmp_path)
    again = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path, dtype="auto")
    assert str(again.dtype) == "torch.float64"
    assert_same_tensors(PegasusXForConditionalGeneration.from_pretrained(tmp_path, dtype="auto"), again, "float64")


def test_keys_and_generation_defaults_survive_loading_and_saving(tmp_path: Path) -> None:
    ours = PegasusXForConditionalGeneration.from_random(SMALL.replace(extra={"somebodys_key": [1, 2]}))
    ours.save_pretrained(tmp_path)
    defaults = {"num_beams": 2, "max_length": 33, "no_repeat_ngram_size": 3, "length_penalty": 0.8}
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults))
    PegasusXForConditionalGeneration.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["somebodys_key"] == [1, 2]
    assert defaults.items() <= json.loads((tmp_path / "again" / "generation_config.json").read_text()).items()


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_safetensors(folder, random_tensors())
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A valid folder to damage."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def failure(folder: Path, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        PegasusXForConditionalGeneration.from_pretrained(folder)
    assert type(caught.value) is error
    return str(caught.value)


def test_the_folder_is_sound_before_it_is_damaged(folder: Path) -> None:
    assert PegasusXForConditionalGeneration.from_pretrained(folder).num_parameters() > 0


def test_missing_tensor_is_named(folder: Path) -> None:
    tensors = random_tensors()
    del tensors["model." + VICTIM]
    write_safetensors(folder, tensors)
    assert failure(folder) == f"{folder}: the weight files lack tensor '{VICTIM}'"
    del tensors["model.decoder.layer_norm.bias"]
    write_safetensors(folder, tensors)
    assert f"lack tensor '{VICTIM}' and 1 more" in failure(folder)


def test_missing_embedding_is_named(folder: Path) -> None:
    tensors = random_tensors()
    del tensors["model." + EMBEDDING]
    write_safetensors(folder, tensors)
    assert f"lack tensor '{EMBEDDING}'" in failure(folder)


def test_missing_copies_of_an_untied_model_are_named(folder: Path) -> None:
    SMALL.replace(tie_word_embeddings=False).save_pretrained(folder)
    assert "lack tensor 'encoder.embed_tokens.weight' and 2 more" in failure(folder)


def test_surplus_tensor_is_named_with_its_file(folder: Path) -> None:
    extra = np.random.default_rng(1).standard_normal(24, dtype=np.float32)
    write_safetensors(folder, random_tensors() | {"model.encoder.layers.2.fc1.bias": extra})
    message = failure(folder)
    assert f"{folder / SAFETENSORS}: tensor 'encoder.layers.2.fc1.bias' is not part of this model" in message


def test_misshapen_tensor_is_named_with_both_shapes(folder: Path) -> None:
    tensors = random_tensors()
    tensors["model." + VICTIM] = tensors["model." + VICTIM][:-1]
    write_safetensors(folder, tensors)
    message = failure(folder)
    assert message.startswith(f"{folder / SAFETENSORS}: tensor '{VICTIM}' has shape (23,)")
    assert "(24,)" in message


def test_transposed_tensor_is_misshapen(folder: Path) -> None:
    tensors = random_tensors()
    tensors["model.encoder.layers.0.fc1.weight"] = tensors["model.encoder.layers.0.fc1.weight"].T
    write_safetensors(folder, tensors)
    message = failure(folder)
    assert message.endswith("has shape (16, 24), but config.json implies (24, 16) (it is transposed)")


def test_vocabulary_of_another_size_is_misshapen(folder: Path) -> None:
    SMALL.replace(vocab_size=41).save_pretrained(folder)
    assert "'shared.weight' has shape (40, 16), but config.json implies (41, 16)" in failure(folder)


@pytest.mark.parametrize("rows", [41, 48, 64])
@pytest.mark.parametrize("tied", [True, False])
def test_longer_tables_set_the_vocabulary(transformers: Any, tmp_path: Path, tied: bool, rows: int) -> None:
    config = SMALL.replace(vocab_size=rows, tie_word_embeddings=tied)
    write_safetensors(tmp_path, random_tensors(config), config)
    _, expected = logits_of_both(transformers, tmp_path)
    config.replace(vocab_size=40).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"tables have {rows} rows, config.json says vocab_size=40") as caught:
        ours = PegasusXForConditionalGeneration.from_pretrained(tmp_path, dtype="float64")
    assert caught[0].filename == __file__
    assert ours.config.vocab_size == rows
    rng = np.random.default_rng(11)
    source, target = rng.integers(2, 40, (2, 19)), rng.integers(2, 40, (2, 5))
    logits = ours(source, decoder_input_ids=target).logits
    assert np.abs(logits - expected).max() <= 1e-10 * np.abs(expected).max()
    assert np.isfinite(ours([[rows - 1]], decoder_input_ids=[[rows - 1]]).logits).all()
    ours.save_pretrained(tmp_path / "again")
    assert PegasusXConfig.from_pretrained(tmp_path / "again").vocab_size == rows


@pytest.mark.parametrize("copy", COPIES)
def test_tables_of_different_lengths_are_misshapen(folder: Path, copy: str) -> None:
    longer = random_tensors(SMALL.replace(vocab_size=48))["model." + EMBEDDING]
    write_safetensors(folder, random_tensors() | {copy if copy == "lm_head.weight" else "model." + copy: longer})
    assert f"'{copy}' has shape (48, 16), but config.json implies (40, 16)" in failure(folder)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (24, 1), (0, 16), (1, 24)])
@pytest.mark.parametrize("name", [VICTIM, EMBEDDING])
def test_tensors_without_elements_or_dimensions_are_misshapen(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    from safetensors.numpy import save_file

    save_file(random_tensors() | {f"model.{name}": np.zeros(shape, np.float32)}, folder / SAFETENSORS)
    assert f"tensor '{name}' has shape {shape}" in failure(folder)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_])
def test_integer_tensor_is_named_with_its_file(folder: Path, dtype: Any) -> None:
    tensors = random_tensors()
    tensors["model." + VICTIM] = np.arange(24).astype(dtype)
    write_safetensors(folder, tensors)
    message = failure(folder)
    assert str(folder / SAFETENSORS) in message
    assert f"tensor 'model.{VICTIM}' has dtype" in message
    assert "expected one of F64, F32, F16, BF16" in message


def test_same_tensor_with_and_without_prefix_is_a_contradiction(folder: Path) -> None:
    tensors = random_tensors()
    write_safetensors(folder, tensors | {EMBEDDING: tensors["model." + EMBEDDING]})
    message = failure(folder)
    assert EMBEDDING in message
    assert "is also in model.safetensors" in message


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "last bytes gone": lambda content: content[:-3],
    "half gone": lambda content: content[: len(content) // 2],
    "cut inside the header": lambda content: content[:100],
    "cut inside the header's size": lambda content: content[:5],
    "empty": lambda content: b"",
    "garbage": lambda content: np.random.default_rng(2).bytes(len(content)),
    "text": lambda content: b"<html>404 Not Found</html>" * 30,
    "header no JSON": lambda content: content[:8] + b"#" + content[9:],
    "header's size too great": lambda content: struct.pack("<Q", 2**40) + content[8:],
    "bytes after the end": lambda content: content + b"abc",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_safetensors_file_is_named(folder: Path, damage: str) -> None:
    path = folder / SAFETENSORS
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert failure(folder).startswith(f"{path}: not a complete safetensors file")


def shard(folder: Path) -> dict[str, str]:
    """Cut the sound file in two shards with an index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / SAFETENSORS)
    (folder / SAFETENSORS).unlink()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    write_index(folder, {"metadata": {}, "weight_map": weight_map})
    return weight_map


def write_index(folder: Path, index: Any) -> None:
    (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps(index))


def test_shards_are_sound_before_they_are_damaged(folder: Path) -> None:
    expected = PegasusXForConditionalGeneration.from_pretrained(folder).state_dict()
    expected = {name: tensor.copy() for name, tensor in expected.items()}
    shard(folder)
    found = PegasusXForConditionalGeneration.from_pretrained(folder).state_dict()
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    missing = folder / "model-00002-of-00002.safetensors"
    missing.unlink()
    assert str(missing) in failure(folder)


def test_damaged_shard_is_named(folder: Path) -> None:
    shard(folder)
    damaged = folder / "model-00002-of-00002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert failure(folder).startswith(f"{damaged}: not a complete safetensors file")


def test_tensor_in_two_shards_is_named_with_both(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weight_map = shard(folder)
    name = next(name for name, file in weight_map.items() if "00001" in file)
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file(load_file(second) | {name: load_file(first)[name]}, second)
    assert failure(folder) == f"{second}: tensor '{name}' is also in {first.name}"


def test_tensor_that_only_the_index_knows_is_missing(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weight_map = shard(folder)
    file = folder / weight_map["model." + VICTIM]
    save_file({name: t for name, t in load_file(file).items() if name != "model." + VICTIM}, file)
    assert f"the weight files lack tensor '{VICTIM}'" in failure(folder)


INDICES: list[Any] = [
    {"metadata": {}},
    {"weight_map": {}},
    {"weight_map": ["a"]},
    {"weight_map": None},
    {"weight_map": {"a": 3}},
    {"weight_map": {"a": ".."}},
    {"weight_map": {"a": ""}},
    {"weight_map": {"a": "../model.safetensors"}},
    [1],
    "text",
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_index_without_a_weight_map_is_named(folder: Path, index: Any) -> None:
    shard(folder)
    write_index(folder, index)
    assert failure(folder).startswith(f"{folder / SAFETENSORS}.index.json: ")


def test_index_that_is_no_json_is_named(folder: Path) -> None:
    shard(folder)
    (folder / f"{SAFETENSORS}.index.json").write_text('{"weight_map": {')
    assert failure(folder).startswith(f"{folder / SAFETENSORS}.index.json: not a JSON object (")


def test_another_model_type_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(SMALL.to_dict() | {"model_type": "bart"}))
    message = failure(folder, ConfigError)
    assert "model_type='bart'" in message
    assert "'pegasus_x'" in message


def test_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert failure(folder).startswith(f"{folder / 'config.json'}: the folder has no such file")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b'{"d_model": 16,}'])
def test_config_that_is_no_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert failure(folder).startswith(f"{folder / 'config.json'}: not a JSON object (")


@pytest.mark.parametrize(
    ("content", "kind"), [("[1, 2]", "list"), ('"text"', "str"), ("3", "int"), ("null", "NoneType")]
)
def test_config_that_is_no_object_is_named(folder: Path, content: str, kind: str) -> None:
    (folder / "config.json").write_text(content)
    assert failure(folder) == f"{folder / 'config.json'}: not a JSON object (it is of type {kind})"


def test_bad_value_in_config_is_a_config_error(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(SMALL.to_dict() | {"block_size": 7}))
    assert "block_size=7 is odd" in failure(folder, ConfigError)


def test_bad_generation_config_is_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text("[1]")
    assert failure(folder).startswith(f"{folder / 'generation_config.json'}: not a JSON object (it is of type list)")


def test_a_name_with_control_characters_is_escaped_and_stands_once(folder: Path) -> None:
    from safetensors.numpy import save_file

    hostile = folder.rename(folder.with_name("model\n\x1b[31m"))
    save_file({"model." + VICTIM: np.arange(3)}, hostile / SAFETENSORS)
    message = failure(hostile)
    assert message.startswith(f"{hostile.parent}/model\\n\\x1b[31m/{SAFETENSORS}: tensor ")
    assert message.count(SAFETENSORS) == 1


def test_missing_folder_is_named(tmp_path: Path) -> None:
    message = failure(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "the folder does not exist" in message


def test_folder_without_weights_lists_the_expected_files(folder: Path) -> None:
    (folder / SAFETENSORS).unlink()
    message = failure(folder)
    assert message.startswith(f"{folder}: no weights found")
    for name in (SAFETENSORS, PICKLE, f"{SAFETENSORS}.index.json", f"{PICKLE}.index.json"):
        assert name in message


# --- faults of pytorch_model.bin -------------------------------------------------------------------------------------


@pytest.fixture
def bin_folder(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    (folder / SAFETENSORS).unlink()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in random_tensors().items()}, folder / PICKLE)
    return folder


def test_the_bin_folder_is_sound_before_it_is_damaged(bin_folder: Path) -> None:
    state = PegasusXForConditionalGeneration.from_pretrained(bin_folder).state_dict()
    assert all(np.array_equal(state[name.removeprefix("model.")], t) for name, t in random_tensors().items())


BIN_DAMAGE = ("last bytes gone", "half gone", "cut inside the header", "empty", "garbage", "text")


@pytest.mark.parametrize("damage", BIN_DAMAGE)
def test_damaged_bin_file_is_named(bin_folder: Path, damage: str) -> None:
    path = bin_folder / PICKLE
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    message = failure(bin_folder)
    assert message.startswith(f"{path}: not a complete file of torch.save")
    assert "\n" not in message


@pytest.mark.parametrize("damage", ["garbage", "text"])
def test_damaged_bin_file_is_no_reason_to_run_code(bin_folder: Path, damage: str) -> None:
    # torch's own message recommends weights_only=False, which runs any code in the file.
    path = bin_folder / PICKLE
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert "weights_only" not in failure(bin_folder)


class Trap:
    """An object that runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_code_of_a_bin_file_is_run(bin_folder: Path, tmp_path: Path) -> None:
    import torch

    torch.save({"model." + VICTIM: Trap(tmp_path / "sprung")}, bin_folder / PICKLE)
    assert str(bin_folder / PICKLE) in failure(bin_folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", ["list", "tensor", "number", "none"])
def test_bin_file_of_something_else_is_named(bin_folder: Path, content: str) -> None:
    import torch

    something = {"list": [torch.rand(3)], "tensor": torch.rand(3), "number": 3, "none": None}[content]
    torch.save(something, bin_folder / PICKLE)
    assert str(bin_folder / PICKLE) in failure(bin_folder)


@pytest.mark.parametrize("kind", ["integers", "float8", "complex", "sparse", "number"])
def test_bad_entry_of_a_bin_file_is_named(bin_folder: Path, kind: str) -> None:
    import torch

    numbers = torch.rand(24)
    entries: dict[str, Any] = {
        "integers": torch.arange(24),
        "float8": numbers.to(torch.float8_e4m3fn),
        "complex": numbers + 0j,
        "sparse": numbers.to_sparse(),
        "number": 3,
    }
    tensors = {name: torch.from_numpy(tensor) for name, tensor in random_tensors().items()}
    torch.save(tensors | {"model." + VICTIM: entries[kind]}, bin_folder / PICKLE)
    message = failure(bin_folder)
    assert str(bin_folder / PICKLE) in message
    assert f"'model.{VICTIM}'" in message


def test_missing_shard_of_a_bin_checkpoint_is_named(bin_folder: Path) -> None:
    (bin_folder / PICKLE).unlink()
    index = {"weight_map": {"model." + VICTIM: "pytorch_model-00001-of-00001.bin"}}
    (bin_folder / f"{PICKLE}.index.json").write_text(json.dumps(index))
    message = failure(bin_folder)
    assert message.startswith(f"{bin_folder / 'pytorch_model-00001-of-00001.bin'}: missing")


def test_misshapen_tensor_of_a_bin_file_is_named(bin_folder: Path) -> None:
    import torch

    tensors = {name: torch.from_numpy(tensor) for name, tensor in random_tensors().items()}
    tensors["model." + VICTIM] = tensors["model." + VICTIM][:-1].clone()
    torch.save(tensors, bin_folder / PICKLE)
    assert f"{bin_folder / PICKLE}: tensor '{VICTIM}' has shape (23,)" in failure(bin_folder)


def test_bin_file_without_torch_names_the_package_to_install(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    message = failure(bin_folder)
    assert str(bin_folder / PICKLE) in message
    assert "pip install torch" in message


def test_safetensors_need_no_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model = PegasusXForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = PegasusXForConditionalGeneration.from_pretrained(folder)
    assert again.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("model_class", [PegasusXForConditionalGeneration, PegasusXModel])
def test_copies_that_differ_load_with_and_without_a_head(tmp_path: Path, model_class: Any) -> None:
    from safetensors.numpy import load_file, save_file

    PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny")).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SAFETENSORS)
    tensors["model.encoder.embed_tokens.weight"] = tensors["model.shared.weight"] + np.float32(1)
    save_file(tensors, tmp_path / SAFETENSORS, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"encoder\.embed_tokens\.weight differ"):
        model = model_class.from_pretrained(tmp_path)
    assert (model.weights["encoder.embed_tokens.weight"] == tensors["model.encoder.embed_tokens.weight"]).all()
    assert (model.weights["decoder.embed_tokens.weight"] == tensors["model.shared.weight"]).all()


def test_saving_over_links_leaves_what_they_point_to(tmp_path: Path) -> None:
    """A hub cache's snapshot is a folder of links to blobs that other snapshots share."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny")).save_pretrained(blobs)
    snapshot.mkdir()
    before = {file.name: file.read_bytes() for file in blobs.iterdir()}
    for name in before:
        (snapshot / name).symlink_to(blobs / name)
    PegasusXForConditionalGeneration.from_pretrained(snapshot, dtype="float64").save_pretrained(snapshot)
    assert {file.name: file.read_bytes() for file in blobs.iterdir()} == before
    assert PegasusXConfig.from_pretrained(snapshot).dtype == "float64"


def test_saved_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny")).save_pretrained(tmp_path)
    (tmp_path / "ordinary").touch()
    modes = {file.name: file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1, modes
