"""Converting checkpoints: from every kind that is read, bit for bit; rounding; reused folders; wrong inputs."""

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from flax_files import flax_arrays, nested, write
from hypothesis import given
from hypothesis import strategies as st
from interruptions import killed_before
from test_checkpoint import LAYOUTS, save_theirs, their_model
from test_saving import content, in_child

from pegasusx_ref import (
    DEMO_CHECKPOINT,
    CheckpointError,
    InputError,
    OutputError,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    PegasusXModel,
    convert,
    pipeline,
)
from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.cli import main
from pegasusx_ref.conversion.casting import cast

DTYPES = ("float32", "bfloat16", "float16", "float64")
CONFIG = PegasusXConfig.preset("tiny", vocab_size=150, d_model=16, encoder_layers=1, decoder_layers=1)
WITHOUT_TOKENIZER = "ignore:.*converted without a tokenizer:UserWarning"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without a tokenizer."""
    PegasusXForConditionalGeneration.from_random(CONFIG, seed=3).save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return PegasusXForConditionalGeneration.from_pretrained(folder, dtype="float64").state_dict()


def assert_equal_weights(folder: Path, expected: dict[str, np.ndarray[Any, Any]]) -> None:
    found = weights(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].tobytes() == tensor.tobytes(), name


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER)
@pytest.mark.parametrize("head", [True, False], ids=["with head", "without head"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_transformers_saved_is_converted_bit_for_bit(
    layout: str, head: bool, transformers: Any, tmp_path: Path
) -> None:
    kind = "PegasusXForConditionalGeneration" if head else "PegasusXModel"
    theirs = their_model(transformers, head)
    save_theirs(theirs, tmp_path / "source", layout)
    if layout.endswith("bin"):
        path = tmp_path / "source" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [kind]}))
    written = convert(tmp_path / "source", tmp_path / "converted")
    assert [path.name for path in written] == [
        "model.safetensors",
        *(["generation_config.json"] if head else []),
        "config.json",
    ]
    loaded, info = getattr(transformers, kind).from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert not any(info.values())
    expected = theirs.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert tensor.numpy().tobytes() == expected[name].numpy().tobytes(), name
    assert loaded.dtype == theirs.dtype
    ours = PegasusXForConditionalGeneration if head else PegasusXModel
    assert ours.from_pretrained(tmp_path / "converted").num_parameters() == theirs.num_parameters()


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER)
@pytest.mark.parametrize("size", ["5GB", "5KB", 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", DTYPES)
def test_every_dtype_is_converted_to_every_other(
    stored: str, dtype: str, size: str | int, transformers: Any, tmp_path: Path
) -> None:
    import torch

    theirs = their_model(transformers, True, "float16").to(getattr(torch, stored))
    theirs.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "converted", dtype=dtype, max_shard_size=size)
    loaded = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path / "converted", dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    for name, tensor in theirs.to(getattr(torch, dtype)).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER, "ignore:.*removed .* from the tensor names:UserWarning")
def test_prefixed_names_are_cleaned(folder: Path, transformers: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    convert(folder, tmp_path / "converted")
    assert load_file(tmp_path / "converted" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings(WITHOUT_TOKENIZER, "ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_merged(folder: Path, transformers: Any, tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft", reason="peft is not installed")
    theirs = transformers.PegasusXForConditionalGeneration.from_pretrained(folder)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    adapted = peft.get_peft_model(theirs, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    convert(tmp_path / "adapter", tmp_path / "converted")
    merged = adapted.merge_and_unload().state_dict()
    for name, tensor in weights(tmp_path / "converted").items():
        np.testing.assert_allclose(tensor, merged[f"model.{name}"].numpy(), rtol=1e-6, atol=1e-6)
    with pytest.raises(OutputError, match="holds an adapter, which transformers would add"):
        convert(tmp_path / "adapter", tmp_path / "adapter")


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER)
def test_untied_tables_stay_untied(transformers: Any, tmp_path: Path) -> None:
    theirs = their_model(transformers, True, tie_word_embeddings=False)
    theirs.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "converted")
    loaded = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path / "converted")
    for name, tensor in theirs.state_dict().items():
        assert np.array_equal(tensor.numpy(), loaded.state_dict()[name].numpy()), name


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER)
def test_settings_are_kept(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        entries = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(entries | {"house_style": [3], "num_beams": 3, "length_penalty": 1}))
    convert(folder, tmp_path / "converted")
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((place / name).read_text()) for place in (folder, tmp_path / "converted"))
        assert after.pop("weights_id", 0) != before.pop("weights_id", 1)
        assert after == before, name
    (folder / "generation_config.json").unlink()
    convert(folder, tmp_path / "converted")
    assert json.loads((tmp_path / "converted" / "generation_config.json").read_text())["num_beams"] == 3


def test_a_name_of_the_hub_is_looked_up_with_its_options(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = []

    def download(name: str, kind: str, hub: dict[str, Any]) -> Path:
        asked.append((name, kind, hub))
        return model_folder

    monkeypatch.setattr("pegasusx_ref.checkpoint.location.download", download)
    convert("owner/name", tmp_path / "converted", revision="v1", token="abc")
    assert [kind for _, kind, _ in asked] == ["model", "tokenizer"]
    assert all((name, hub) == ("owner/name", {"revision": "v1", "token": "abc"}) for name, _, hub in asked)
    asked.clear()
    convert("owner/name", tmp_path / "converted", revision="v1", token="abc", tokenizer="other/name")
    assert {(name, hub["revision"], hub["token"]) for name, _, hub in asked} == {
        ("owner/name", "v1", "abc"),
        ("other/name", None, "abc"),
    }
    assert_equal_weights(tmp_path / "converted", weights(model_folder))
    with pytest.raises(TypeError, match="house_style"):
        convert("owner/name", tmp_path / "converted", house_style=3)  # type: ignore[call-arg]


# --- rounding --------------------------------------------------------------------------------------------------------


@given(st.floats(width=64), st.sampled_from(DTYPES[:3]))
def test_numbers_are_rounded_once_to_nearest_even(number: float, dtype: str) -> None:
    target = numpy_dtype(dtype)
    try:
        (rounded,) = cast("x", np.array([number]), dtype)
    except InputError:
        bound = float(ml_dtypes.finfo(target).max)  # type: ignore[no-untyped-call]
        assert bound < abs(number) < float("inf")
        return
    if not np.isfinite(number):
        assert str(float(rounded)) == str(number)
        return
    exact = Fraction(number)
    with np.errstate(over="ignore"):
        below, above = (np.nextafter(rounded, target.type(sign * np.inf)) for sign in (-1, 1))
    for other in (below, above):
        if np.isfinite(other):
            distance, own = abs(Fraction(float(other)) - exact), abs(Fraction(float(rounded)) - exact)
            assert own <= distance
            if own == distance:
                assert rounded.view(np.uint32 if target.itemsize == 4 else np.uint16) % 2 == 0


def test_halves_of_bfloat16_are_rounded_by_what_float32_cannot_hold() -> None:
    one = 1 + 2.0**-8  # between two bfloat16 numbers
    found = cast("x", np.array([one, one + 2.0**-40, one - 2.0**-40, -one - 2.0**-40]), "bfloat16")
    assert found.astype(float).tolist() == [1, 1 + 2.0**-7, 1, -1 - 2.0**-7]


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER)
@pytest.mark.parametrize(
    ("stored", "number", "dtype", "remedy"),
    [
        ("float32", 7e4, "float16", "70000, but float16 ends at 65504: choose bfloat16"),
        ("float32", -3.4e38, "bfloat16", "-3.4e\\+38, but bfloat16 ends at 3.38953e\\+38: choose float32"),
        ("float64", 1e300, "float32", "1e\\+300, but float32 ends at 3.40282e\\+38: choose float64"),
    ],
)
def test_a_number_that_becomes_infinite_is_an_error(
    stored: str, number: float, dtype: str, remedy: str, tmp_path: Path
) -> None:
    model = PegasusXForConditionalGeneration.from_random(CONFIG, dtype=stored)
    model.state_dict()["encoder.layers.0.fc1.weight"][1, 2] = number
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "converted").mkdir()
    with pytest.raises(InputError, match=f"tensor 'encoder.layers.0.fc1.weight' has the number {remedy}"):
        convert(tmp_path / "source", tmp_path / "converted", dtype=dtype)
    assert not content(tmp_path / "converted")


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_the_tokenizers_files_are_copied(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "source")
    added = {"added_tokens.json": "{}", "special_tokens_map.json": '{"eos_token": "</s>"}', "README.md": "x"}
    for name, text in added.items():
        (tmp_path / "source" / name).write_text(text)
    convert(tmp_path / "source", tmp_path / "converted")
    before, after = content(tmp_path / "source"), content(tmp_path / "converted")
    assert after.keys() == before.keys() - {"README.md"}
    for name in ("spiece.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        assert after[name] == before[name]
    assert pipeline("summarization", tmp_path / "converted")("A library.", max_new_tokens=2)


def test_a_missing_tokenizer_is_told_and_can_be_given(
    folder: Path, tokenizer: PegasusTokenizer, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"source: has no spiece\.model or tokenizer\.json: converted without"):
        convert(folder, tmp_path / "converted")
    with pytest.raises(CheckpointError, match=f"has {tokenizer.vocab_size} ids, but the model 150"):
        convert(folder, tmp_path / "converted", tokenizer=model_folder)
    with pytest.raises(CheckpointError, match="nowhere"):
        convert(folder, tmp_path / "converted", tokenizer=tmp_path / "nowhere")
    convert(model_folder, tmp_path / "other", tokenizer=tokenizer.vocab_file)
    assert {"spiece.model", "tokenizer_config.json"} < content(tmp_path / "other").keys()
    (tmp_path / "other" / "tokenizer.json").write_text("{}")
    with pytest.raises(OutputError, match=r"tokenizer\.json: belongs to another tokenizer"):
        convert(model_folder, tmp_path / "other")


# --- destinations ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER)
def test_the_source_can_be_the_destination(folder: Path) -> None:
    expected = weights(folder)
    (folder / "notes.txt").write_text("mine")
    for size, num_files in (("3KB", 13), (None, 1), ("1KB", 25), ("1KB", 25), ("5GB", 1)):
        convert(folder, folder, max_shard_size=size)
        assert_equal_weights(folder, expected)
        assert sum(name.endswith(".safetensors") for name in content(folder)) == num_files
        assert (folder / "notes.txt").read_text() == "mine"
    convert(folder / ".." / folder.name, folder, dtype="bfloat16")
    assert PegasusXConfig.from_pretrained(folder).dtype == "bfloat16"


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER)
def test_a_source_that_cannot_be_written_back_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(folder)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        convert(folder, folder, dtype="float64", max_shard_size="2KB")
    assert content(folder) == before


def convert_and_die(arguments: list[str], line: int) -> None:
    """Run the command; end without any clean-up before a line of the writing code is executed."""
    with killed_before(line):
        main(arguments, standalone_mode=False)


@pytest.mark.slow
def test_a_conversion_that_is_killed_leaves_nothing_that_loads(
    folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    line, step, exit_code = 1, 1 if request.config.getoption("--long") else 701, 1
    while exit_code:
        destination = tmp_path / str(line)
        arguments = ["convert", str(folder), str(destination), "--max-shard-size", "2KB"]
        exit_code = in_child(convert_and_die, arguments, line)
        if exit_code:
            assert exit_code == -signal.SIGKILL
            with pytest.raises(CheckpointError):
                PegasusXForConditionalGeneration.from_pretrained(destination)
            assert CliRunner().invoke(main, arguments).exit_code == 0  # also clears what is left
        assert not [name for name in content(destination) if name.endswith(".tmp")]
        assert_equal_weights(destination, weights(folder))
        line += step
    assert line > 1000


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    with warnings.catch_warnings():
        return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_the_command_prints_the_files_that_it_wrote(tmp_path: Path) -> None:
    result = run(DEMO_CHECKPOINT, tmp_path / "new", "--dtype", "float32", "--max-shard-size", "9MB")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        str(tmp_path / "new" / name)
        for name in (
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "spiece.model",
            "model.safetensors.index.json",
            "generation_config.json",
            "config.json",
        )
    ]
    assert not result.stderr


def test_a_flax_checkpoint_is_converted_and_summarizes_with_one_command_each(
    tokenizer: PegasusTokenizer, tmp_path: Path
) -> None:
    path = write(tmp_path / "checkpoint_1800000", nested(flax_arrays(CONFIG.replace(vocab_size=tokenizer.vocab_size))))
    result = run(path, tmp_path / "new", "--tokenizer", tokenizer.vocab_file, "--config", "tiny")
    assert result.exit_code == 0, result.stderr
    assert [line.startswith("Note: ") for line in result.stderr.splitlines()] == [True]
    (tmp_path / "text.txt").write_text("A small library that reads and writes files.")
    arguments = ["summarize", str(tmp_path / "text.txt"), "--model", str(tmp_path / "new"), "--max-new-tokens", "4"]
    assert CliRunner().invoke(main, arguments).exit_code == 0


WRONG: dict[str, tuple[Callable[[Path, Path], list[object]], str]] = {
    "no source": (lambda source, new: [source / "nothing", new], "nothing/config.json: the folder does not exist"),
    "an empty folder": (lambda source, new: [source / "empty", new], "empty/config.json: the folder has no such file"),
    "no Hub name": (lambda source, new: ["owner/../name", new], "owner/../name/config.json: the folder does not"),
    "a weight file": (lambda source, new: [source / "model.safetensors", new], "is a file: pass the folder"),
    "a text as Flax": (lambda source, new: [source / "text.txt", new], "text.txt: not a Flax checkpoint"),
    "a device": (lambda source, new: ["/dev/zero", new], "/dev/zero"),
    "a file as destination": (lambda source, new: [source, source / "text.txt"], "text.txt: is a file: name a folder"),
    "an impossible destination": (lambda source, new: [source, source / "text.txt" / "x"], "cannot be written"),
    "a dtype": (lambda source, new: [source, new, "--dtype", "int8"], "'--dtype': 'int8' is not one of"),
    "a size": (lambda source, new: [source, new, "--max-shard-size", "5"], "max_shard_size='5' must be a number of"),
    "a configuration": (lambda source, new: [source, new, "--config", "base"], "is for Flax checkpoints"),
    "a revision": (lambda source, new: [source, new, "--revision", "main"], "is for a SOURCE of the Hugging Face Hub"),
    "a tokenizer": (lambda source, new: [source, new, "--tokenizer", source / "text.txt"], "text.txt"),
    "damaged settings": (lambda source, new: [source / "damaged", new], "damaged/config.json: not a JSON object"),
    "one argument": (lambda source, new: [source], "Missing argument 'DESTINATION'"),
}


@pytest.mark.filterwarnings(WITHOUT_TOKENIZER)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_one_line_and_writes_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{")
    (folder / "text.txt").write_text("a text")
    arguments, message = WRONG[name]
    before = sorted(folder.rglob("*"))
    result = run(*arguments(folder, tmp_path / "new"))
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    assert result.exit_code == 2, result.output
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert message in lines[0]
    assert result.stdout == ""
    assert not (tmp_path / "new").exists()
    assert sorted(folder.rglob("*")) == before
