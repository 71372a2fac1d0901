"""The configuration: published values, bad values, and the way to transformers and back."""

import dataclasses
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegasusx_ref import CheckpointError, ConfigError, PegasusXConfig
from pegasusx_ref.model.config import LIMITS
from pegasusx_ref.model.weights import parameter_shapes

# config.json of google/pegasus-x-base and google/pegasus-x-large.
PUBLISHED_IN_BOTH: dict[str, Any] = {
    "activation_function": "relu",
    "num_global_tokens": 128,
    "block_size": 512,
    "stagger_local_blocks": True,
    "vocab_size": 96103,
    "max_position_embeddings": 16384,
    "scale_embedding": True,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 1,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "layer_norm_eps": 1e-5,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    name: PUBLISHED_IN_BOTH
    | {
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": ffn,
        "decoder_ffn_dim": ffn,
    }
    for name, d_model, layers, heads, ffn in (("base", 768, 12, 12, 3072), ("large", 1024, 16, 16, 4096))
}
# Fields that transformers' configuration does not have as such.
OURS_ALONE = {"layer_norm_eps", "dtype", "extra"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_equals_published_values(name: str) -> None:
    config = PegasusXConfig.preset(name)
    assert {field: getattr(config, field) for field in PUBLISHED[name]} == PUBLISHED[name]


# Counted in transformers' models of these shapes.
@pytest.mark.parametrize(("name", "number"), [("base", 272_292_096), ("large", 568_667_136)])
def test_preset_has_the_published_number_of_parameters(name: str, number: int) -> None:
    shapes = parameter_shapes(PegasusXConfig.preset(name))
    assert sum(math.prod(shape) for shape in shapes.values()) == number


def test_preset_takes_changes_and_leaves_the_preset_alone() -> None:
    changed = PegasusXConfig.preset("base", block_size=64, num_global_tokens=3)
    assert (changed.block_size, changed.num_global_tokens, changed.d_model) == (64, 3, 768)
    assert PegasusXConfig.preset("base").block_size == 512


def test_unknown_preset_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"'huge'.*tiny, base, large"):
        PegasusXConfig.preset("huge")


def test_unknown_field_is_a_type_error_that_names_it() -> None:
    with pytest.raises(TypeError, match="blok_size"):
        PegasusXConfig.preset("tiny", blok_size=4)


def test_defaults_equal_the_class_defaults_of_transformers(transformers: Any) -> None:
    theirs, ours = transformers.PegasusXConfig(), PegasusXConfig()
    names = {f.name for f in dataclasses.fields(ours)} - OURS_ALONE
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}


# Every value differs from the default, so that none can be lost unseen.
UNUSUAL: dict[str, Any] = {
    "vocab_size": 517,
    "max_position_embeddings": 300,
    "d_model": 36,
    "encoder_layers": 3,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 50,
    "decoder_layers": 2,
    "decoder_attention_heads": 9,
    "decoder_ffn_dim": 70,
    "num_global_tokens": 5,
    "block_size": 7,
    "stagger_local_blocks": False,
    "activation_function": "silu",
    "scale_embedding": False,
    "tie_word_embeddings": False,
    "init_std": 0.3,
    "use_cache": False,
    "pad_token_id": 4,
    "eos_token_id": [8, 9],
    "decoder_start_token_id": 6,
    "forced_eos_token_id": [8],
    "dropout": 0.25,
    "attention_dropout": 0.2,
    "activation_dropout": 0.15,
}


def test_unusual_values_cover_every_field_and_differ_from_the_default() -> None:
    default = PegasusXConfig()
    assert set(UNUSUAL) == {f.name for f in dataclasses.fields(default)} - OURS_ALONE
    assert all(getattr(default, name) != value for name, value in UNUSUAL.items())


def test_round_trip_from_transformers_and_back(transformers: Any, tmp_path: Path) -> None:
    theirs = transformers.PegasusXConfig(
        **UNUSUAL, dtype="bfloat16", architectures=["PegasusXModel"], task_specific_params={"length_penalty": 0.7}
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = PegasusXConfig.from_pretrained(tmp_path / "theirs")
    assert {name: getattr(ours, name) for name in UNUSUAL} == UNUSUAL
    assert ours.dtype == "bfloat16"
    assert ours.extra["task_specific_params"] == {"length_penalty": 0.7}

    ours.save_pretrained(tmp_path / "ours")
    again = transformers.PegasusXConfig.from_pretrained(tmp_path / "ours")
    ignored = {"_name_or_path", "transformers_version"}
    assert {k: v for k, v in again.to_dict().items() if k not in ignored} == {
        k: v for k, v in theirs.to_dict().items() if k not in ignored
    }


def test_round_trip_to_transformers_and_back(transformers: Any, tmp_path: Path) -> None:
    ours = PegasusXConfig(**UNUSUAL, layer_norm_eps=1e-12, dtype="float64", extra={"a_key_of_someone": [1, {"b": 2}]})
    ours.save_pretrained(tmp_path / "ours")
    transformers.PegasusXConfig.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = PegasusXConfig.from_pretrained(tmp_path / "theirs")
    assert again.replace(extra={}) == ours.replace(extra={})
    assert again.extra["a_key_of_someone"] == [1, {"b": 2}]


@pytest.mark.parametrize("name", ["tiny", "base", "large"])
def test_preset_survives_transformers(transformers: Any, tmp_path: Path, name: str) -> None:
    ours = PegasusXConfig.preset(name)
    ours.save_pretrained(tmp_path / "ours")
    transformers.PegasusXConfig.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert PegasusXConfig.from_pretrained(tmp_path / "theirs").replace(extra={}, dtype=None) == ours


def test_what_transformers_leaves_out_is_its_default(transformers: Any, tmp_path: Path) -> None:
    transformers.PegasusXConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({"model_type": written["model_type"]}))
    assert PegasusXConfig.from_pretrained(tmp_path) == PegasusXConfig()


@pytest.mark.parametrize(
    ("entries", "dtype"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "float16"),
        ({"dtype": None, "torch_dtype": "float32"}, "float32"),
        ({}, None),
    ],
)
def test_dtype_is_read_under_both_names_and_written_under_the_newer(entries: dict[str, Any], dtype: str | None) -> None:
    config = PegasusXConfig.from_dict(entries)
    assert config.dtype == dtype
    assert "torch_dtype" not in config.extra
    assert "torch_dtype" not in config.to_dict()
    assert config.to_dict().get("dtype") == dtype


def test_torch_dtype_reaches_transformers(transformers: Any, tmp_path: Path) -> None:
    PegasusXConfig.from_dict({"torch_dtype": "bfloat16"}).save_pretrained(tmp_path)
    assert str(transformers.PegasusXConfig.from_pretrained(tmp_path).dtype) == "torch.bfloat16"


def test_unknown_keys_survive_reading_and_writing(tmp_path: Path) -> None:
    entries = {"gradient_checkpointing": False, "summary": {"max": [3, 4]}, "classifier_dropout": 0.37}
    PegasusXConfig.from_dict(entries | {"d_model": 96}).save_pretrained(tmp_path / "new" / "folder")
    config = PegasusXConfig.from_pretrained(tmp_path / "new" / "folder")
    assert entries.items() <= config.extra.items()
    assert config.d_model == 96
    assert entries.items() <= config.to_dict().items()


def test_from_dict_leaves_its_argument_alone() -> None:
    entries = {"model_type": "pegasus_x", "torch_dtype": "float32", "odd_key": 7, "d_model": 48}
    before = dict(entries)
    PegasusXConfig.from_dict(entries)
    assert entries == before


def test_changing_the_written_dictionary_leaves_the_configuration_alone() -> None:
    config = PegasusXConfig(eos_token_id=[1, 5], extra={"listed": [3]})
    written = config.to_dict()
    written["eos_token_id"].append(7)
    written["listed"].append(4)
    assert config.eos_token_id == [1, 5]
    assert config.extra == {"listed": [3]}


@pytest.mark.parametrize(("eps", "written"), [(1e-5, False), (1e-12, True), (2e-5, True)])
def test_layer_norm_eps_is_written_only_where_it_differs(eps: float, written: bool) -> None:
    config = PegasusXConfig(layer_norm_eps=eps)
    assert ("layer_norm_eps" in config.to_dict()) is written
    assert PegasusXConfig.from_dict(config.to_dict()).layer_norm_eps == eps


def test_written_dictionary_has_model_type_and_architecture() -> None:
    written = PegasusXConfig(extra={"model_type": "bart", "is_encoder_decoder": False}).to_dict()
    assert written["model_type"] == "pegasus_x"
    assert written["is_encoder_decoder"] is True


def test_replace_copies_and_checks() -> None:
    config = PegasusXConfig.preset("tiny")
    assert config.replace(block_size=12).block_size == 12
    assert config.block_size == 8
    with pytest.raises(ConfigError, match="block_size=9 is odd"):
        config.replace(block_size=9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.block_size = 16  # type: ignore[misc]


POSITIVE = [
    "vocab_size",
    "max_position_embeddings",
    "d_model",
    "num_global_tokens",
    "block_size",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_attention_heads",
    "decoder_ffn_dim",
]


@pytest.mark.parametrize("value", [0, -3, 2.0, 7.5, "8", None, True, [4], math.nan])
@pytest.mark.parametrize("name", POSITIVE)
def test_sizes_must_be_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", **{name: value})
    assert f"{name}={value!r} must be an integer from {LIMITS[name].least} to " in str(caught.value)


@pytest.mark.parametrize("value", [-1, 1.0, "2", None, False])
@pytest.mark.parametrize("name", ["encoder_layers", "decoder_layers"])
def test_layers_must_be_nonnegative_integers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", **{name: value})
    assert f"{name}={value!r} must be an integer from 0 to 512" in str(caught.value)


@pytest.mark.parametrize("name", ["encoder_layers", "decoder_layers"])
def test_no_layers_are_allowed(name: str) -> None:
    assert getattr(PegasusXConfig.preset("tiny", **{name: 0}), name) == 0


@pytest.mark.parametrize("value", [0, 1, None, "true", 0.5])
@pytest.mark.parametrize("name", ["stagger_local_blocks", "scale_embedding", "tie_word_embeddings", "use_cache"])
def test_switches_must_be_true_or_false(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", **{name: value})
    assert f"{name}={value!r} must be true or false" in str(caught.value)


@pytest.mark.parametrize("value", [0, -1e-5, math.nan, math.inf, "1e-5", None, True, [0.1]])
@pytest.mark.parametrize("name", ["layer_norm_eps", "init_std"])
def test_eps_and_init_std_must_be_finite_and_positive(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", **{name: value})
    assert f"{name}={value!r} must be a number from 1e-30 to" in str(caught.value)


@pytest.mark.parametrize("value", [-1, 256, 1.0, "1", True, [1, 256], [1, -2], [True]])
@pytest.mark.parametrize("name", ["eos_token_id", "forced_eos_token_id"])
def test_ending_token_ids_must_lie_in_the_vocabulary(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", **{name: value})
    assert f"{name}={value!r}" in str(caught.value)
    assert "vocab_size=256" in str(caught.value)


@pytest.mark.parametrize("value", [-1, 256, 1.0, "1", False, [1]])
@pytest.mark.parametrize("name", ["pad_token_id", "decoder_start_token_id"])
def test_single_token_ids_must_lie_in_the_vocabulary(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", **{name: value})
    assert f"{name}={value!r} must be a token id in [0, vocab_size=256)" in str(caught.value)


def test_no_token_need_end_a_text_or_be_forced() -> None:
    config = PegasusXConfig.preset("tiny", forced_eos_token_id=None, eos_token_id=None)
    assert (config.forced_eos_token_id, config.eos_token_id) == (None, None)
    with pytest.raises(ConfigError, match=r"eos_token_id=\[\]"):
        PegasusXConfig.preset("tiny", eos_token_id=[])


@pytest.mark.parametrize(
    ("entries", "start", "pad"),
    [
        ({"decoder_start_token_id": None, "bos_token_id": 4}, 4, 0),
        ({"decoder_start_token_id": 3, "bos_token_id": 4}, 3, 0),
        ({"pad_token_id": None}, 0, 1),
        ({"pad_token_id": None, "eos_token_id": [5, 6]}, 0, 5),
        ({"pad_token_id": None, "eos_token_id": None}, 0, 0),
    ],
)
def test_tokens_that_are_null_are_replaced_as_in_generation(entries: dict[str, Any], start: int, pad: int) -> None:
    config = PegasusXConfig.from_dict(PegasusXConfig.preset("tiny").to_dict() | entries)
    assert (config.decoder_start_token_id, config.pad_token_id) == (start, pad)


def test_no_first_token_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match="decoder_start_token_id=None must be a token id"):
        PegasusXConfig.preset("tiny", decoder_start_token_id=None)


@pytest.mark.parametrize(("value", "message"), [(2, "an integer from 4 to 65,536"), (33, "even")])
def test_width_must_be_even_and_at_least_four(value: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"d_model={value} must be {message}"):
        PegasusXConfig.preset("tiny", d_model=value, encoder_attention_heads=1, decoder_attention_heads=1)


@pytest.mark.parametrize("excess", [1, 10**12, 10**5000], ids=["1", "10**12", "10**5000"])
@pytest.mark.parametrize("name", LIMITS)
def test_numbers_beyond_their_limits_are_refused_before_anything_is_made_of_them(name: str, excess: int) -> None:
    limits, started = LIMITS[name], time.perf_counter()
    with pytest.raises(ConfigError, match=re.escape(limits.reason)) as caught:
        PegasusXConfig.preset("tiny", **{name: int(limits.most) + excess})
    assert len(str(caught.value)) < 300
    assert time.perf_counter() - started < 0.5


def test_the_specification_lists_every_limit() -> None:
    text = (Path(__file__).parents[1] / "spec/14-checkpoints.md").read_text()
    for name, (least, most, reason) in LIMITS.items():
        row = re.search(rf"^\| .*`{name}`.* \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE)
        assert row is not None, name
        assert row.groups() == (f"{least:,}", f"{most:,}", reason)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_heads_must_divide_the_width(side: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", **{f"{side}_attention_heads": 5})
    message = str(caught.value)
    assert f"d_model=32 is not divisible by {side}_attention_heads=5" in message
    assert "choose a number of heads that divides 32" in message


def test_staggered_blocks_must_be_even() -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", block_size=7)
    message = str(caught.value)
    assert "block_size=7 is odd: staggered layers need an even block_size" in message
    assert "stagger_local_blocks=false" in message
    assert PegasusXConfig.preset("tiny", block_size=7, stagger_local_blocks=False).block_size == 7


@pytest.mark.parametrize("value", ["tanh", "ReLU", None, 3, ["relu"]])
def test_activation_must_be_known(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.preset("tiny", activation_function=value)
    assert f"activation_function={value!r} is unknown: choose one of relu, gelu" in str(caught.value)


def test_numbers_of_numpy_become_numbers_of_python(tmp_path: Path) -> None:
    config = PegasusXConfig.preset(
        "tiny",
        block_size=np.int64(8),
        dropout=np.float32(0.5),
        init_std=np.array(0.25),
        use_cache=np.bool_(False),
        eos_token_id=np.array([1, 5]),
        forced_eos_token_id=(np.uint8(5),),
    )
    assert config == PegasusXConfig.preset(
        "tiny", block_size=8, dropout=0.5, init_std=0.25, use_cache=False, eos_token_id=[1, 5], forced_eos_token_id=[5]
    )
    config.save_pretrained(tmp_path)
    assert PegasusXConfig.from_pretrained(tmp_path).replace(extra={}) == config
    for value in (np.float64(8), np.array([8]), np.bool_(True)):
        with pytest.raises(ConfigError, match="block_size="):
            PegasusXConfig.preset("tiny", block_size=value)


@pytest.mark.parametrize("model_type", ["bart", "pegasus", None, 3])
def test_another_architecture_is_refused(model_type: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        PegasusXConfig.from_dict({"model_type": model_type})
    assert f"model_type={model_type!r}" in str(caught.value)
    assert "'pegasus_x'" in str(caught.value)


def test_bad_value_in_a_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_global_tokens": 0}))
    with pytest.raises(ConfigError, match="num_global_tokens=0 must be an integer from 1 to 65,536"):
        PegasusXConfig.from_pretrained(tmp_path)


def test_missing_file_is_a_checkpoint_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        PegasusXConfig.from_pretrained(str(tmp_path))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_another_object_is_no_configuration(tmp_path: Path) -> None:
    """It would be the default configuration."""
    for entries in ({}, {"error": "Repository not found"}):
        (tmp_path / "config.json").write_text(json.dumps(entries))
        with pytest.raises(ConfigError, match=r"config\.json: it has no entry of a PEGASUS-X configuration"):
            PegasusXConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 32}))
    assert PegasusXConfig.from_pretrained(tmp_path).d_model == 32
