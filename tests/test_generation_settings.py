"""Settings: from files, objects and arguments; checked when they are used; named where they have no effect."""

import copy
import inspect
import json
import pickle
import re
import shutil
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hf_reference import hf_reference, to_torch

from pegasusx_ref import ConfigError, GenerationConfig, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.generation import search
from pegasusx_ref.generation.config import settings_names
from pegasusx_ref.generation.known_settings import (
    ARGUMENTS_WITHOUT_EFFECT,
    NEUTRAL,
    NEUTRAL_ARGUMENTS,
    WITHOUT_EFFECT,
)
from pegasusx_ref.generation.sampling import candidate_sampler
from pegasusx_ref.generation.settings import settings_of_call

IDS = [[120, 130, 140, 1]]


@pytest.fixture(scope="module")
def model() -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny", init_std=0.5), dtype="float64")


def with_file(folder: Path, target: Path, entries: dict[str, Any]) -> PegasusXForConditionalGeneration:
    shutil.copytree(folder, target, dirs_exist_ok=True)
    (target / "generation_config.json").write_text(
        json.dumps({"decoder_start_token_id": 0, "eos_token_id": 1} | entries)
    )
    return PegasusXForConditionalGeneration.from_pretrained(target)


@pytest.mark.slow  # transformers imports much for them
def test_every_setting_of_transformers_is_classified(transformers: ModuleType) -> None:
    """A setting that a new version has fails here until it is supported, or known to change tokens, or not."""
    theirs = {name for name in vars(transformers.GenerationConfig()) if name != "_original_object_hash"}
    ours = settings_names()
    assert theirs <= ours | NEUTRAL.keys() | WITHOUT_EFFECT
    assert ours <= theirs
    assert not ours & (NEUTRAL.keys() | WITHOUT_EFFECT)
    assert not NEUTRAL.keys() & WITHOUT_EFFECT
    defaults = transformers.GenerationConfig._get_default_generation_params()
    assert {name: NEUTRAL[name] for name in defaults if name in NEUTRAL} == {
        name: value for name, value in defaults.items() if name in NEUTRAL
    }


@pytest.mark.slow
def test_every_argument_of_transformers_is_classified(transformers: ModuleType) -> None:
    theirs = set(inspect.signature(transformers.PegasusXForConditionalGeneration.generate).parameters)
    ours = set(inspect.signature(PegasusXForConditionalGeneration.generate).parameters)
    # `inputs` is another spelling of input_ids.
    assert theirs - {"kwargs", "tokenizer", "inputs"} <= ours | NEUTRAL_ARGUMENTS.keys() | ARGUMENTS_WITHOUT_EFFECT


@pytest.mark.parametrize(
    "entries",
    [
        {"temperature": 0.0},
        {"top_p": 0, "top_k": -1},
        {"length_penalty": "long", "early_stopping": 7},
        {"max_length": 0, "max_new_tokens": 3},
        {"max_time": None, "stop_strings": None},
    ],
    ids=str,
)
def test_a_file_loads_and_what_is_not_used_is_not_checked(
    model_folder: Path, tmp_path: Path, entries: dict[str, Any]
) -> None:
    model = with_file(model_folder, tmp_path, entries | {"max_new_tokens": 3})
    assert model.generate(IDS).shape == (1, 4)


@pytest.mark.parametrize(
    ("entries", "message", "cure"),
    [
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0 must be", {"temperature": 0.5}),
        ({"do_sample": True, "top_k": -1}, "top_k=-1 must be", {"top_k": 0}),
        ({"do_sample": True, "top_p": 2.0}, "top_p=2.0 must be", {"do_sample": False}),
        ({"num_beams": 3, "length_penalty": 1e9}, "length_penalty=1000000000.0 must be", {"num_beams": 1}),
        ({"num_beams": "many"}, "num_beams='many' must be", {"num_beams": 1}),
        ({"max_new_tokens": -3}, "max_new_tokens=-3 must be", {"max_new_tokens": 3}),
        ({"suppress_tokens": [10**9]}, "suppress_tokens=[1000000000] must be a token id", {"suppress_tokens": []}),
        ({"stop_strings": ["a"]}, "pass tokenizer=, or leave them out", {"stop_strings": []}),
    ],
    ids=str,
)
def test_what_is_used_is_checked_after_arguments_have_replaced_it(
    model_folder: Path, tmp_path: Path, entries: dict[str, Any], message: str, cure: dict[str, Any]
) -> None:
    model = with_file(model_folder, tmp_path, {"max_new_tokens": 3, "min_new_tokens": 3} | entries)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.generate(IDS)
    assert model.generate(IDS, **cure).shape == (1, 4)


def test_public_files_load_and_generate(model_folder: Path, tmp_path: Path) -> None:
    public: dict[str, Any] = {
        "max_new_tokens": 128,
        "num_beams": 4,
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 4,
    }
    public |= {"repetition_penalty": 3.5, "min_length": 8, "length_penalty": 0.5, "early_stopping": True, "top_k": -1}
    public |= {"renormalize_logits": True, "temperature": 0.0, "transformers_version": "4.2", "use_cache": True}
    model = with_file(model_folder, tmp_path, public)
    assert model.generate(IDS, max_new_tokens=8).shape == (1, 9)
    assert model.generate(IDS, max_new_tokens=8, num_beams=1).shape == (1, 9)
    model = with_file(model_folder, tmp_path, public | {"do_sample": True, "temperature": 0.7, "top_k": 9})
    assert model.generate(IDS, max_new_tokens=8, seed=0).shape == (1, 9)


def test_all_settings_that_are_not_supported_are_named(model_folder: Path, tmp_path: Path) -> None:
    other = dict.fromkeys(NEUTRAL, 7)
    model = with_file(model_folder, tmp_path, other | {"num_beam": 3, "an_entry_of_someone": 1, "use_cache": False})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.generate(IDS, max_new_tokens=1)
    first, second = (str(warning.message) for warning in caught)
    assert first == "ignoring unsupported settings of the checkpoint: " + ", ".join(f"{name}=7" for name in NEUTRAL)
    assert second == "ignoring the unknown setting 'num_beam' of the checkpoint: did you mean 'num_beams'?"
    assert {warning.filename for warning in caught} == {__file__}
    assert GenerationConfig.from_pretrained(tmp_path).extra["an_entry_of_someone"] == 1
    model = with_file(model_folder, tmp_path, NEUTRAL | {"constraints": [], "min_p": None})
    assert model.generate(IDS, max_new_tokens=1).shape == (1, 2)


def test_many_unknown_entries_take_little_time(model: PegasusXForConditionalGeneration) -> None:
    extra = {f"num_beams_{i:x}" + "a" * (i % 100): i for i in range(20_000)}
    config, started = GenerationConfig(max_new_tokens=2, extra=extra), time.perf_counter()
    settings_of_call(config, None, {}, set(), 256)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("name", sorted(NEUTRAL.keys() | NEUTRAL_ARGUMENTS.keys()))
def test_an_argument_that_is_not_supported_is_an_error_unless_it_is_neutral(
    model: PegasusXForConditionalGeneration, name: str
) -> None:
    other: dict[str, Any] = {name: 7}
    with pytest.raises(ConfigError, match=re.escape(f"generate() does not support {name}=7: ")):
        model.generate(IDS, max_new_tokens=1, **other)
    for value in (None, (NEUTRAL | NEUTRAL_ARGUMENTS)[name]):
        neutral: dict[str, Any] = {name: value}
        assert model.generate(IDS, max_new_tokens=1, **neutral).shape == (1, 2)


def test_unknown_arguments_stay_type_errors_and_harmless_ones_are_accepted(
    model: PegasusXForConditionalGeneration,
) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'stop_string'; did you mean 'stop_strings'\?"):
        model.generate(IDS, max_new_tokens=1, stop_string="a")
    harmless: dict[str, Any] = dict.fromkeys(
        WITHOUT_EFFECT - {"cache_implementation"} | ARGUMENTS_WITHOUT_EFFECT, False
    )
    assert model.generate(IDS, max_new_tokens=1, **harmless).shape == (1, 2)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_length": 5, "max_new_tokens": 3}, "max_length=5 has no effect: max_new_tokens=3 comes first"),
        ({"max_new_tokens": 3, "min_length": 2, "min_new_tokens": 1}, "min_length=2 has no effect: min_new_tokens=1"),
        ({"max_new_tokens": 3, "temperature": 0.7, "top_p": 0.5}, "temperature=0.7, top_p=0.5: no effect without do_s"),
        ({"max_new_tokens": 3, "top_k": 5}, "top_k=5: no effect without do_sample=True"),
        ({"max_new_tokens": 3, "length_penalty": 2.0}, "length_penalty=2.0: no effect without num_beams above 1"),
        ({"max_new_tokens": 3, "early_stopping": True}, "early_stopping=True: no effect without num_beams above 1"),
        ({"max_new_tokens": 3, "output_attentions": True}, "output_attentions=True: no effect without return_dict"),
        ({}, "no maximum length is set: at most 20 tokens are generated; pass max_new_tokens"),
    ],
    ids=str,
)
def test_an_argument_without_effect_is_told_once(
    model: PegasusXForConditionalGeneration, how: dict[str, Any], message: str
) -> None:
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        model.generate(IDS, **how)
    assert len(caught) == 1


def test_values_without_a_difference_are_not_told(model: PegasusXForConditionalGeneration) -> None:
    same: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "length_penalty": 1.0,
        "early_stopping": False,
    }
    assert model.generate(IDS, max_new_tokens=2, **same, output_scores=False).shape == (1, 3)


def test_max_length_of_an_argument_loses_to_the_file_as_in_transformers(
    transformers: ModuleType, model_folder: Path, tmp_path: Path
) -> None:
    model = with_file(model_folder, tmp_path, {"max_new_tokens": 7, "min_new_tokens": 7})
    with pytest.warns(UserWarning, match="max_length=5 has no effect: max_new_tokens=7 comes first"):
        ours = model.generate(IDS, max_length=5)
    theirs = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    assert theirs.generate(to_torch(np.array(IDS)), max_length=5).shape == ours.shape == (1, 8)


def test_settings_come_from_objects_dictionaries_and_folders(
    transformers: ModuleType, model: PegasusXForConditionalGeneration, tmp_path: Path
) -> None:
    wanted: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "min_new_tokens": 4}
    expected = model.generate(IDS, **wanted).tolist()
    ours = GenerationConfig(**wanted)
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.GenerationConfig(**wanted)
    theirs.save_pretrained(tmp_path / "theirs")
    for form in (ours, theirs, wanted, tmp_path / "ours", str(tmp_path / "theirs"), ours.to_dict()):
        assert model.generate(IDS, generation_config=form).tolist() == expected, form
        assert model.generate(IDS, generation_config=form, num_return_sequences=1).tolist() == expected[:1]
    for wrong in (3, [wanted], print):
        with pytest.raises(ConfigError, match=r"generation_config=.*: pass a GenerationConfig, a dictionary"):
            model.generate(IDS, generation_config=wrong)


def test_only_settings_that_were_given_replace_the_models(transformers: ModuleType) -> None:
    config = PegasusXConfig.preset("tiny", init_std=0.8, eos_token_id=[1, 7], forced_eos_token_id=None)
    random = PegasusXForConditionalGeneration.from_random(config, dtype="float64")
    own = random.generation_config.updated(num_beams=4, length_penalty=0.5, max_new_tokens=6)
    model = PegasusXForConditionalGeneration(config, random.state_dict(), random.ops, own)
    hf_model = hf_reference(transformers, model)
    hf_model.generation_config = transformers.GenerationConfig(**own.to_dict())
    ids = np.random.default_rng(0).integers(2, 256, (3, 9))
    for change in (
        {},
        {"num_beams": 1},
        {"length_penalty": 1.0},
        {"eos_token_id": 9},
        {"num_beams": 2, "max_length": 4},
    ):
        theirs = hf_model.generate(to_torch(ids), generation_config=transformers.GenerationConfig(**change))
        ours = model.generate(ids, generation_config=GenerationConfig(**change))
        assert ours.tolist() == theirs.tolist(), change
        merged, _ = settings_of_call(own, GenerationConfig(**change), {}, set(), 256)
        assert merged == own.updated(**change)


def test_what_was_given_survives_copies() -> None:
    config = GenerationConfig(num_beams=1, eos_token_id=None)
    for again in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.updated()):
        assert again == config
        assert again.given == {"num_beams"}
    assert config.updated(top_k=3).given == {"num_beams", "top_k"}
    assert config.updated(top_k=3).eos_token_ids == []


def test_the_public_methods_read_and_write_a_file(tmp_path: Path, model_folder: Path) -> None:
    numbers: dict[str, Any] = {"num_beams": np.int64(3), "length_penalty": np.float32(0.5)}
    config = GenerationConfig(**numbers, extra={"typical_p": 0.4})
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path) == config == GenerationConfig.from_dict(config.to_dict())
    assert json.loads((tmp_path / "generation_config.json").read_text())["num_beams"] == 3
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"num_beams": 5, "output_attentions": True, "d_model": 7}))
    read = GenerationConfig.from_pretrained(str(tmp_path))
    assert (read.num_beams, read.output_attentions, read.extra) == (5, False, {})
    with pytest.raises(ConfigError, match="entries=3 must be a dictionary"):
        GenerationConfig.from_dict(3)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_torch_are_numbers(model: PegasusXForConditionalGeneration) -> None:
    torch = pytest.importorskip("torch")
    plain: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 5, "eos_token_id": [1, 9], "length_penalty": 0.5}
    plain |= {"early_stopping": True, "bad_words_ids": [[3], [4, 5]], "exponential_decay_length_penalty": [2, 1.5]}
    odd = {
        "num_beams": np.int64(2),
        "max_new_tokens": torch.tensor(5),
        "eos_token_id": np.array([1, 9]),
        "length_penalty": np.float32(0.5),
        "early_stopping": np.bool_(True),
        "bad_words_ids": [np.array([3]), (np.int8(4), torch.tensor(5))],
        "exponential_decay_length_penalty": (np.uint8(2), np.float64(1.5)),
    }
    assert GenerationConfig(**odd) == GenerationConfig(**plain)
    assert json.dumps(GenerationConfig(**odd).to_dict()) == json.dumps(GenerationConfig(**plain).to_dict())
    assert model.generate(IDS, **odd).tolist() == model.generate(IDS, **plain).tolist()


@pytest.mark.parametrize(
    ("in_config", "in_file"),
    [
        ({"bos_token_id": 4, "decoder_start_token_id": None}, None),
        ({}, {"bos_token_id": 3, "eos_token_id": [1, 29, 22, 33, 16]}),
        ({}, {"bos_token_id": 3, "decoder_start_token_id": 5, "eos_token_id": 1, "pad_token_id": 0}),
        ({}, {"decoder_start_token_id": 3, "pad_token_id": None, "eos_token_id": [22, 1, 29, 33, 16]}),
        ({"pad_token_id": None}, None),
        ({"eos_token_id": None}, None),
        ({"eos_token_id": [1, 29, 22], "pad_token_id": None}, None),
    ],
    ids=str,
)
def test_tokens_that_are_null_or_missing(
    transformers: ModuleType, tmp_path: Path, in_config: dict[str, Any], in_file: dict[str, Any] | None
) -> None:
    config = PegasusXConfig.preset("tiny", vocab_size=40, init_std=0.8, forced_eos_token_id=None)
    PegasusXForConditionalGeneration.from_random(config, 2).save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text()) | in_config
    (tmp_path / "config.json").write_text(json.dumps(entries))
    if in_file is None:
        (tmp_path / "generation_config.json").unlink()
    else:
        (tmp_path / "generation_config.json").write_text(json.dumps(in_file))
    ids = np.random.default_rng(0).integers(2, 40, (4, 9))
    theirs = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    ours = PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    expected = theirs.generate(to_torch(ids), max_new_tokens=8, do_sample=False, num_beams=1).tolist()
    found = ours.generate(ids, max_new_tokens=8).tolist()
    if (
        in_file is not None and "pad_token_id" not in in_file
    ):  # taken from config.json: transformers takes the end token
        expected, found = ([[x for x in row if x not in (0, 1)] for row in rows] for rows in (expected, found))
    assert found == expected


@pytest.mark.parametrize(("written", "padding"), [({"pad_token_id": None}, 9), ({}, 3), ({"pad_token_id": 5}, 5)])
def test_rows_are_filled_up_with_the_end_token_where_padding_is_null(
    tmp_path: Path, written: dict[str, Any], padding: int
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 1]} | written))
    config = GenerationConfig.from_pretrained(tmp_path, PegasusXConfig.preset("tiny", pad_token_id=3))
    assert config.padding_token_id == padding

    def next_logits(ids_BL: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
        return np.eye(12)[[9, 7]][:, None]

    ids, _ = search(next_logits, 2, config.updated(max_new_tokens=3))
    assert ids.tolist() == [[0, 9, padding, padding], [0, 7, 7, 7]]


@pytest.mark.parametrize("how", [{}, {"top_k": 2}, {"top_p": 0.3}, {"temperature": 0.5}], ids=str)
def test_beam_sampling_follows_the_exact_distribution(how: dict[str, Any]) -> None:
    """With one step: two candidates are drawn without replacement, and the better one is returned."""
    config = PegasusXConfig.preset("tiny", vocab_size=6, init_std=0.2, forced_eos_token_id=None)
    model = PegasusXForConditionalGeneration.from_random(config, 1, dtype="float64")
    ids = np.repeat([[3, 4, 5]], 500, axis=0)
    step = model.generate(ids[:1], max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
    logits = step.logits[0][0].astype(np.float64) / how.get("temperature", 1.0)
    order = np.argsort(-logits)
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    kept = 6
    if "top_k" in how:
        kept = 2
    if "top_p" in how:
        kept = max(2, 1 + int((np.cumsum(chances[order]) < how["top_p"]).sum()))
    chances[order[kept:]] = 0
    chances /= chances.sum()
    expected = np.zeros(6)
    for first in range(6):
        for second in range(6):
            if first != second and chances[first] < 1:
                best = max(first, second, key=lambda token: logits[token])
                expected[best] += chances[first] * chances[second] / (1 - chances[first])
    counts = np.zeros(6)
    for seed in range(8):
        found = model.generate(
            ids, do_sample=True, num_beams=2, num_return_sequences=2, max_new_tokens=1, seed=seed, **how
        )
        counts += np.bincount(found[::2, 1], minlength=6)
        assert set(found[1::2, 1].tolist()) <= set(order[:kept].tolist())
    assert np.abs(counts / 4000 - expected).max() < 5 * np.sqrt(0.25 / 4000)


def test_candidates_are_drawn_one_after_another_without_replacement() -> None:
    chances = np.array([0.1, 0.2, 0.7])
    scores = np.repeat(np.log(chances)[None], 40_000, axis=0)
    values, columns = candidate_sampler(np.random.default_rng(0))(scores, 2)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, columns, axis=1))
    for first in range(3):
        for second in range(3):
            frequency = (columns == [first, second]).all(axis=1).mean()
            expected = chances[first] * chances[second] / (1 - chances[first]) if first != second else 0
            assert abs(frequency - expected) < 5 * np.sqrt(0.25 / 40_000)


def test_beam_sampling_is_reproducible_and_differs_between_seeds(model: PegasusXForConditionalGeneration) -> None:
    how: dict[str, Any] = {"do_sample": True, "num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6}
    first = model.generate(IDS, seed=1, **how).tolist()
    assert first == model.generate(IDS, seed=1, **how).tolist()
    assert first != model.generate(IDS, seed=2, **how).tolist()
