"""Flax checkpoints of the paper's code: every layout, every number, every fault by name, hostile files."""

import math
import struct
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax_files import Arrays, chunked, extension, flax_arrays, nested, write
from hypothesis import given, settings
from hypothesis import strategies as st

from pegasusx_ref import (
    CheckpointError,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    convert,
)
from pegasusx_ref.checkpoint.flax.msgpack_values import Extension, parse_msgpack
from pegasusx_ref.checkpoint.flax.reading import read_flax

CONFIG = PegasusXConfig.preset(
    "tiny",
    vocab_size=150,
    d_model=16,
    encoder_layers=2,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=24,
    layer_norm_eps=1e-12,
)
ARRAYS = flax_arrays(CONFIG)


def notes_of(source: Path, destination: Path, **arguments: Any) -> str:
    """Convert, and return the notes."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        convert(source, destination, **arguments)
    return "\n".join(str(note.message) for note in notes)


def converted(source: Path, destination: Path, **arguments: Any) -> PegasusXForConditionalGeneration:
    """Convert and load."""
    notes_of(source, destination, **{"config": CONFIG, **arguments})
    return PegasusXForConditionalGeneration.from_pretrained(destination, dtype="float64")


# --- names, layouts, numbers -----------------------------------------------------------------------------------------


def flat(arrays: Arrays) -> dict[str, Any]:
    return {name: extension(array) for name, array in arrays.items()}


TREES: dict[str, Callable[[], Any]] = {
    "parameters": lambda: nested(ARRAYS),
    "flat names": lambda: flat(ARRAYS),
    "variables": lambda: {"params": nested(ARRAYS)},
    "flat variables": lambda: {f"params/{name}": extension(array) for name, array in ARRAYS.items()},
    "train state": lambda: {
        "step": 1_800_000,
        "params": nested(ARRAYS),
        "opt_state": {"0": {"mu": nested(ARRAYS), "count": extension(np.array(3, np.int32))}, "1": {}},
    },
    "optimizer": lambda: {
        "optimizer": {
            "target": flat(ARRAYS),
            "state": {"step": 3, "param_states": {"shared_embedding": {"embedding": {"v": extension(np.ones(3))}}}},
        }
    },
    "target of variables": lambda: {"target": {"params": nested(ARRAYS)}},
    "chunks": lambda: nested(ARRAYS, chunked),
}


@pytest.mark.parametrize("name", TREES)
def test_every_layout_of_the_parameters_is_the_same_model(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint_1", TREES[name]())
    model = converted(path, tmp_path / "converted")
    assert model.config.to_dict() == CONFIG.replace(dtype="float32", extra=model.config.extra).to_dict()
    found = model.state_dict()
    attention = ARRAYS["decoder/encoderdecoderblock_0/MultiHeadDotProductAttention_0/out/kernel"]
    for j in range(16):
        for f in range(8):
            row = found["decoder.layers.0.encoder_attn.out_proj.weight"][j]
            assert row[f] == attention[0, f, j]
            assert row[8 + f] == attention[1, f, j]
    # An independent mapping: the result of each module on the same input.
    x = np.random.default_rng(1).standard_normal(16)
    query = ARRAYS["encoder/encoderblock_1/GlobalLocalSelfAttention_0/query/kernel"].astype(float)
    heads = np.einsum("d,dhf->hf", x, query)
    weight = found["encoder.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_allclose(weight @ x, heads.reshape(-1), rtol=1e-12)
    dense = ARRAYS["encoder/encoderblock_0/MlpBlock_0/Dense_0/kernel"].astype(float)
    np.testing.assert_allclose(found["encoder.layers.0.fc1.weight"] @ x, x @ dense, rtol=1e-12)


VECTORS = {
    "shared.weight": "shared_embedding/embedding",
    "encoder.embed_global.weight": "encoder/Embed_0/embedding",
    "encoder.layer_norm.weight": "encoder/encoder_norm/scale",
    "decoder.layer_norm.bias": "decoder/encoderdecoder_norm/bias",
    "encoder.layers.1.self_attn_layer_norm.weight": "encoder/encoderblock_1/LayerNorm_0/scale",
    "encoder.layers.1.global_self_attn_layer_norm.weight": "encoder/encoderblock_1/LayerNorm_1/scale",
    "encoder.layers.1.final_layer_norm.bias": "encoder/encoderblock_1/LayerNorm_2/bias",
    "decoder.layers.0.self_attn_layer_norm.weight": "decoder/encoderdecoderblock_0/LayerNorm_0/scale",
    "decoder.layers.0.encoder_attn_layer_norm.weight": "decoder/encoderdecoderblock_0/LayerNorm_1/scale",
    "decoder.layers.0.final_layer_norm.weight": "decoder/encoderdecoderblock_0/LayerNorm_2/scale",
    "decoder.layers.0.fc2.bias": "decoder/encoderdecoderblock_0/MlpBlock_0/Dense_1/bias",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_numbers_and_dtypes_are_kept(dtype: str, tmp_path: Path) -> None:
    arrays = {name: array.astype(getattr(ml_dtypes, dtype, dtype)) for name, array in ARRAYS.items()}
    model = converted(write(tmp_path / "flax.msgpack", nested(arrays)), tmp_path / "converted")
    assert model.config.dtype == dtype
    for ours, theirs in VECTORS.items():
        assert np.array_equal(model.state_dict()[ours], arrays[theirs].astype(np.float64)), ours


def test_the_defaults_are_those_of_the_published_models(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint_5", nested(ARRAYS))
    notes = notes_of(tmp_path, tmp_path / "converted")
    assert "layer_norm_eps=1e-12; transformers ignores" in notes
    assert "without a tokenizer" in notes
    model = PegasusXForConditionalGeneration.from_pretrained(tmp_path / "converted")
    config = model.config
    assert (config.activation_function, config.block_size, config.layer_norm_eps) == ("relu", 512, 1e-12)
    assert (config.stagger_local_blocks, config.max_position_embeddings, config.dropout) == (True, 16384, 0.1)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (4, 2)
    generation = model.generation_config
    assert (generation.num_beams, generation.length_penalty, generation.max_length) == (8, 0.8, 16384)
    assert (generation.forced_eos_token_id, generation.decoder_start_token_id) == (1, 0)


def test_what_shapes_do_not_tell_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint_5", nested(ARRAYS))
    assert converted(path, tmp_path / "a", config="tiny").config.block_size == 8
    (tmp_path / "config.json").write_text('{"block_size": 4, "activation_function": "gelu", "dropout": 0.3}')
    for place in (tmp_path / "config.json", tmp_path):
        assert "tanh approximation" in notes_of(path, tmp_path / "b", config=place)
        config = PegasusXConfig.from_pretrained(tmp_path / "b")
        assert (config.block_size, config.activation_function, config.dropout) == (4, "gelu_new", 0.3)
        assert (config.layer_norm_eps, config.vocab_size) == (1e-12, 150)
    with pytest.raises(CheckpointError, match=r"large2: cannot be read: .* one of tiny, base, large"):
        convert(path, tmp_path / "c", config="large2")
    (tmp_path / "config.json").write_text('{"block_size": 7}')
    with pytest.raises(CheckpointError, match=r"config\.json.*block_size=7 is odd"):
        convert(path, tmp_path / "c", config=tmp_path / "config.json")
    assert not (tmp_path / "c").exists()


def test_a_converted_checkpoint_summarizes_a_text(tokenizer: PegasusTokenizer, tmp_path: Path) -> None:
    from pegasusx_ref import pipeline

    arrays = flax_arrays(CONFIG.replace(vocab_size=tokenizer.vocab_size))
    arrays["shared_embedding/embedding"][:106] = 0  # no reserved tokens
    path = write(tmp_path / "checkpoint_7", {"target": flat(arrays)})
    converted(path, tmp_path / "converted", tokenizer=tokenizer.vocab_file)
    summarizer = pipeline("summarization", tmp_path / "converted")
    assert summarizer.tokenizer.model_max_length == CONFIG.max_position_embeddings
    (result,) = summarizer("A library that reads files.", max_new_tokens=8)
    assert result["summary_text"]
    with pytest.raises(CheckpointError, match=f"has {tokenizer.vocab_size} ids, but the model 150"):
        converted(write(path, nested(ARRAYS)), tmp_path / "other", tokenizer=tokenizer.vocab_file)


@pytest.mark.slow
def test_flax_itself_writes_what_is_read(tmp_path: Path) -> None:
    serialization: Any = pytest.importorskip("flax.serialization", reason="flax is not installed")
    tree: dict[str, Any] = {}
    for name, array in ARRAYS.items():
        *modules, last = name.split("/")
        place = tree
        for module in modules:
            place = place.setdefault(module, {})
        place[last] = array
    (tmp_path / "theirs").write_bytes(serialization.to_bytes(tree))
    write(tmp_path / "ours", nested(ARRAYS))
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()


# --- faults ----------------------------------------------------------------------------------------------------------

QUERY = "encoder/encoderblock_0/GlobalLocalSelfAttention_0/query/kernel"


def changed(**arrays: Any) -> Any:
    """The tree with other arrays; None removes one."""
    return nested({name: array for name, array in (ARRAYS | arrays).items() if array is not None})


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "missing": (lambda: changed(**{"encoder/encoder_norm/bias": None}), "'encoder/encoder_norm/bias' is missing"),
    "no globals": (lambda: changed(**{"encoder/Embed_0/embedding": None}), "'encoder/Embed_0/embedding' is missing"),
    "no first layer": (lambda: changed(**{QUERY: None}), "query/kernel' is missing"),
    "surplus": (
        lambda: changed(**{"encoder/posembed_input/pos_embedding": np.ones((1, 4, 16), np.float32)}),
        "'encoder/posembed_input/pos_embedding' is not part of this model, nor are 0 others",
    ),
    "a gap between layers": (
        lambda: changed(**{"decoder/encoderdecoderblock_2/LayerNorm_0/bias": np.ones(16, np.float32)}),
        "encoderdecoderblock_1/.*' is missing",
    ),
    "endless layers": (
        lambda: changed(**{"decoder/encoderdecoderblock_99999999/LayerNorm_0/bias": np.ones(16, np.float32)}),
        "decoder_layers=100000000 must be an integer from 0 to 512",
    ),
    "other heads": (
        lambda: changed(**{"encoder/encoderblock_1/GlobalLocalSelfAttention_0/key/kernel": np.ones((16, 2, 8), "f4")}),
        r"key/kernel' has shape \(16, 2, 8\), but the other ones imply \(16, 4, 4\)",
    ),
    "a matrix for heads": (lambda: changed(**{QUERY: np.ones((16, 16), "f4")}), r"has shape \(16, 16\), not 3 axes"),
    "an out kernel like the others": (
        lambda: changed(**{"encoder/encoderblock_1/GlobalLocalSelfAttention_0/out/kernel": np.ones((16, 4, 4), "f4")}),
        r"out/kernel' has shape \(16, 4, 4\), but the other ones imply \(4, 4, 16\)",
    ),
    "integers": (lambda: changed(**{QUERY: np.ones((16, 4, 4), np.int32)}), "has dtype 'int32': expected one of"),
    "a number": (lambda: nested(ARRAYS) | {"encoder": 3}, "'encoder' is no array"),
    "two models": (
        lambda: {"params": nested(ARRAYS), "target": nested(ARRAYS)},
        "2 models with shared_embedding/embedding",
    ),
    "another model": (lambda: {"params": {"token_embedder": extension(np.ones(3))}}, "0 models .*token_embedder"),
    "no dictionary": (lambda: [1, 2], "0 models"),
    "the same name twice": (
        lambda: nested(ARRAYS) | {"shared_embedding/embedding": extension(np.ones((2, 2)))},
        "two entries have the name 'shared_embedding/embedding'",
    ),
    "a shape that lies": (
        lambda: nested(ARRAYS) | {"shared_embedding": {"embedding": lying([2**31, 2**31], "float32", b"1234")}},
        r"of shape \[2147483648, 2147483648\] and dtype float32 has 4 bytes",
    ),
    "a negative shape": (
        lambda: nested(ARRAYS) | {"shared_embedding": {"embedding": lying([-1, -1], "float32", b"1234")}},
        r"has the shape \[-1, -1\]",
    ),
    "endless axes": (
        lambda: nested(ARRAYS) | {"shared_embedding": {"embedding": lying([2**60] * 10_000, "float32", b"1234")}},
        "has the shape",
    ),
    "no array inside": (
        lambda: nested(ARRAYS) | {"shared_embedding": {"embedding": msgpack.ExtType(1, msgpack.packb("x"))}},
        "'shared_embedding/embedding' is no array",
    ),
    "chunks that do not fit": (
        lambda: (
            nested(ARRAYS)
            | {"shared_embedding": {"embedding": chunked(ARRAYS["shared_embedding/embedding"]) | {"shape": {"0": 7}}}}
        ),
        "cannot reshape",
    ),
}


def lying(shape: list[int], dtype: str, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_file_is_one_line_that_names_the_fault(name: str, tmp_path: Path) -> None:
    tree, message = FAULTS[name]
    path = write(tmp_path / "checkpoint_1", tree())
    with pytest.raises(CheckpointError, match=message) as caught:
        converted(path, tmp_path / "converted")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "converted").exists()


RAW = {
    "empty": (b"", "it is empty"),
    "zeros": (b"\0" * 100, "begins with zeros"),
    "a web page": (b"<!DOCTYPE html><html>", "a web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
    "cut": (msgpack.packb(nested(ARRAYS))[:-100], "its end is missing"),
    "more behind it": (msgpack.packb(nested(ARRAYS)) + b"x", "1 bytes follow the end"),
    "a text of 4 GB": (b"\xdb\xff\xff\xff\xff", "a text of 4,294,967,295 bytes"),
    "an array of 4 G entries": (b"\xdd\xff\xff\xff\xff\xc0", "its end is missing"),
    "a map of 4 G entries": (b"\xdf\xff\xff\xff\xff\xa1a", "its end is missing"),
    "an array of many": (b"\xdd\x00\xff\xff\xff" + b"\xc0" * 2**20, "more than 150,000 values"),
    "depth": (b"\x91" * 100_000 + b"\xc0", "nested too deeply"),
    "the depth of a hundred": (b"\x91" * 100 + b"\xc0", "nested too deeply"),
    "depth of maps": (b"\x81\xa1a" * 100_000 + b"\xc0", "nested too deeply"),
    "the unused byte": (b"\x81\xa1a\xc1", "0xc1"),
    "a number as key": (b"\x81\x01\x01", "a key that is no text"),
    "a map as key": (b"\x81\x80\x01", "a key that is no text"),
    "a key twice": (b"\x82\xa1a\x01\xa1a\x02", "is there twice"),
    "no UTF-8": (b"\x81\xa1\xff\x01", "utf-8"),
    "endless names": ((b"\x81\xda\x20\x00" + b"a" * 8192) * 3 + b"\xc0", "a name of more than 500 characters"),
}


@pytest.mark.parametrize("name", RAW)
def test_a_damaged_or_hostile_file_ends_in_one_line_and_little_memory(name: str, tmp_path: Path) -> None:
    content, message = RAW[name]
    path = tmp_path / "checkpoint_1"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message):
            read_flax(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(20))
def test_mutated_files_are_read_or_refused(seed: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = np.random.default_rng(seed)
    original = np.frombuffer(msgpack.packb(TREES["train state"]()), np.uint8)
    head = np.flatnonzero(original == 0xC7)[:40]  # where an array begins
    for _ in range(500 if request.config.getoption("--long") else 10):
        content = original.copy()
        places = [*rng.integers(0, 200, 2), *(rng.choice(head, 2) + rng.integers(0, 24, 2))]
        content[places] = rng.integers(0, 256, len(places))
        path = tmp_path / "checkpoint_1"
        path.write_bytes(content.tobytes()[: rng.integers(1, 4 * len(content))])
        with suppress(CheckpointError):
            notes_of(path, tmp_path / "converted", config=CONFIG)


def test_large_arrays_are_mapped_and_not_copied(tmp_path: Path) -> None:
    large = ARRAYS | {"shared_embedding/embedding": np.zeros((2**17, 16), np.float32)}  # 8 MiB
    state = {"params": nested(large), "opt_state": {"mu": nested(large)}}
    path = write(tmp_path / "checkpoint_1", state)
    tracemalloc.start()
    try:
        with pytest.warns(UserWarning, match="are the state of the training"):
            arrays = read_flax(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert np.array_equal(arrays["shared_embedding/embedding"], large["shared_embedding/embedding"])
    assert not arrays["shared_embedding/embedding"].flags.writeable


# --- folders ---------------------------------------------------------------------------------------------------------


def test_orbax_and_t5x_folders_are_called_what_they_are(tmp_path: Path) -> None:
    for name in ("_METADATA", "target.encoder.encoder_norm.scale", "manifest.ocdbt"):
        for folder in (tmp_path / name / "checkpoint_9", tmp_path / f"{name}2"):
            folder.mkdir(parents=True)
            (folder / name).write_text("")
        for source in (tmp_path / name, tmp_path / name / "checkpoint_9", tmp_path / f"{name}2"):
            with pytest.raises(CheckpointError, match=r"a checkpoint of Orbax or T5X.*to_bytes"):
                convert(source, tmp_path / "converted")


def test_of_several_checkpoints_one_is_asked_for(tmp_path: Path) -> None:
    for step in (5, 12):
        write(tmp_path / f"checkpoint_{step}", nested(ARRAYS))
    with pytest.raises(CheckpointError, match="holds 2 Flax checkpoints: pass one of them"):
        convert(tmp_path, tmp_path / "converted")


def test_weights_in_the_folder_come_first(tmp_path: Path) -> None:
    PegasusXForConditionalGeneration.from_random(CONFIG).save_pretrained(tmp_path)
    write(tmp_path / "flax_model.msgpack", [])
    with pytest.warns(UserWarning, match="without a tokenizer"):
        convert(tmp_path, tmp_path / "converted")


# --- msgpack ---------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(width=32) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def as_plain(value: Any) -> Any:
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, list):
        return [as_plain(entry) for entry in value]
    return {name: as_plain(entry) for name, entry in value.items()} if isinstance(value, dict) else value


@pytest.mark.slow
@settings(max_examples=40)
@given(VALUES, st.booleans())
def test_msgpack_values_are_read_back(value: Any, single: bool) -> None:
    packed = msgpack.packb(value, use_single_float=single)
    assert as_plain(parse_msgpack(memoryview(packed))) == as_plain(msgpack.unpackb(packed, strict_map_key=False))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 8, 16, 17, 255, 256])
def test_every_size_of_msgpack_values_is_read(size: int) -> None:
    for value in (b"a" * size, "a" * size, [None] * size, {str(i): i for i in range(size)}):
        assert as_plain(parse_msgpack(memoryview(msgpack.packb(value)))) == value
    packed = msgpack.packb(msgpack.ExtType(5, b"a" * size))
    assert parse_msgpack(memoryview(packed)) == Extension(5, memoryview(b"a" * size))


@pytest.mark.slow
@pytest.mark.parametrize("value", [b"a" * 2**16, "a" * 2**16, [None] * 2**16, {str(i): None for i in range(2**16)}])
def test_large_sizes_of_msgpack_values_are_read(value: Any) -> None:
    parsed = parse_msgpack(memoryview(msgpack.packb(value)))
    assert len(parsed) == 2**16
    assert as_plain(parsed) == value


def test_msgpack_is_not_needed_to_read(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoint_1", nested(ARRAYS))
    code = (
        "import sys; sys.modules['msgpack'] = None\n"
        "from pathlib import Path; from pegasusx_ref.checkpoint.flax.reading import read_flax\n"
        f"print(len(read_flax(Path({str(path)!r}))))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == len(ARRAYS)


def test_numbers_of_msgpack_are_big_endian() -> None:
    packed = b"\xcb" + struct.pack(">d", 1.5)
    assert parse_msgpack(memoryview(packed)) == 1.5
