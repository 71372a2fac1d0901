"""Greedy decoding: token by token what transformers writes."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import Batch, batches, configs, seeds
from twins import to_torch, transformers_twin

from pegasusx_ref import ConfigError, InputError, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.generation import GenerationConfig, greedy_search
from pegasusx_ref.generation.scores import forbid_early_end, force_end

UNLIKELY_TIE = 1e-6  # transformers compares logits in float32, so a smaller gap may be decided by its rounding


@st.composite
def limits(draw: st.DrawFn) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if draw(st.booleans()):
        values["max_new_tokens"] = draw(st.integers(1, 12))
    elif draw(st.booleans()):
        values["max_length"] = draw(st.integers(2, 12))
    else:
        values["max_new_tokens"] = 20
    longest = values.get("max_length") or 1 + values["max_new_tokens"]
    if draw(st.booleans()):
        values["min_length"] = draw(st.integers(0, longest))
    if draw(st.booleans()):
        values["min_new_tokens"] = draw(st.integers(0, longest - 1))
    return values


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_tokens_equal_transformers(transformers: ModuleType, data: st.DataObject) -> None:
    eos = data.draw(st.sampled_from([1, [1], [1, 3], [4, 2, 1]]))
    forced = data.draw(st.sampled_from([None, 1, [1, 4]]))
    config = data.draw(configs(decoder_layers=2, init_std=1.0, eos_token_id=eos, forced_eos_token_id=forced))
    batch: Batch = data.draw(batches(config))
    kwargs = data.draw(limits())
    model = PegasusXForConditionalGeneration.from_random(config, data.draw(seeds), dtype="float64")
    ours = model.generate(batch.input_ids, batch.attention_mask, **kwargs)

    logits = model(batch.input_ids, batch.attention_mask, ours).logits
    best = np.sort(logits, axis=-1)[:, :, -2:]
    assume((best[..., 1] - best[..., 0] > UNLIKELY_TIE).all())

    twin = transformers_twin(transformers, model)
    mask = np.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    theirs = twin.generate(
        to_torch(batch.input_ids), attention_mask=to_torch(mask), num_beams=1, do_sample=False, **kwargs
    )
    assert ours.tolist() == theirs.tolist()


def fixed_logits(rows: list[list[int]], vocab_size: int = 9) -> Any:
    """A model that says row[t] at step t, whatever it is told."""
    step = iter(range(100))

    def next_logits(ids: np.ndarray) -> np.ndarray:
        t = next(step)
        logits = np.random.default_rng(t).random((len(rows), vocab_size))
        for b, row in enumerate(rows):
            logits[b, row[min(t, len(row) - 1)]] += 2
        return logits

    return next_logits


def test_rows_that_end_are_padded_until_the_longest_ends() -> None:
    ids = greedy_search(fixed_logits([[5, 1], [6, 7, 8, 1]]), 2, GenerationConfig(max_length=10, pad_token_id=0))
    assert ids.tolist() == [[0, 5, 1, 0, 0], [0, 6, 7, 8, 1]]
    assert ids.dtype == np.int64


def test_the_longest_text_ends_where_it_must() -> None:
    without = greedy_search(fixed_logits([[5]]), 1, GenerationConfig(max_length=4))
    assert without.tolist() == [[0, 5, 5, 5]]
    forced = greedy_search(fixed_logits([[5]]), 1, GenerationConfig(max_length=4, forced_eos_token_id=1))
    assert forced.tolist() == [[0, 5, 5, 1]]


def test_forced_end_goes_before_the_least_length() -> None:
    config = GenerationConfig(max_length=4, min_length=4, forced_eos_token_id=1)
    assert greedy_search(fixed_logits([[1]]), 1, config)[0, -1] == 1


def test_among_equal_logits_the_lowest_id_wins() -> None:
    ids = greedy_search(lambda ids: np.array([[0.0, -1.0, 3.0, 3.0 + 1e-12]]), 1, GenerationConfig(max_new_tokens=1))
    assert ids.tolist() == [[0, 2]]


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_score_processors_equal_transformers(transformers: ModuleType, length: int) -> None:
    import torch
    from transformers.generation.logits_process import ForcedEOSTokenLogitsProcessor, MinLengthLogitsProcessor

    scores = np.random.default_rng(length).standard_normal((3, 7)).astype(np.float32)
    before = scores.copy()
    so_far = torch.zeros((3, length), dtype=torch.int64)
    theirs = MinLengthLogitsProcessor(3, [1, 4], device="cpu")(so_far, to_torch(scores.copy()))
    assert (forbid_early_end(scores, length, 3, [1, 4]) == theirs.numpy()).all()
    theirs = ForcedEOSTokenLogitsProcessor(6, [1, 4], device="cpu")(so_far, to_torch(scores.copy()))
    assert (force_end(scores, length, 6, [1, 4]) == theirs.numpy()).all()
    assert (scores == before).all()


def test_defaults_come_from_the_folder(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "generation_config.json"
    ids = [[120, 130, 140, 1]]
    defaults = json.loads(file.read_text()) | {"max_length": 7, "min_length": 7, "length_penalty": 0.8}
    file.write_text(json.dumps(defaults))
    model = PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    assert model.generate(ids).shape == (1, 7)
    assert model.generate(ids, max_new_tokens=8, min_new_tokens=8).shape == (1, 9)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["length_penalty"] == 0.8

    file.unlink()  # older checkpoints hold the defaults in config.json
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_length": 5, "min_length": 5}))
    assert PegasusXForConditionalGeneration.from_pretrained(tmp_path).generate(ids).shape == (1, 5)


@pytest.mark.parametrize(
    "ids", [{"eos_token_id": "1"}, {"pad_token_id": -1}, {"forced_eos_token_id": [1, 2.0]}, {"eos_token_id": 256}]
)
def test_bad_token_ids_are_refused(model_folder: Path, tmp_path: Path, ids: dict[str, Any]) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    config = PegasusXConfig.from_pretrained(model_folder)
    ids = {name: config.vocab_size if value == 256 else value for name, value in ids.items()}
    (tmp_path / "generation_config.json").write_text(json.dumps(ids))
    (name,) = ids
    with pytest.raises(ConfigError, match=f"{name}=.* must be a token id in"):
        PegasusXForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("written", [{"eos_token_id": None}, {}, {"eos_token_id": 1}])
def test_ids_that_the_file_lacks(transformers: ModuleType, tmp_path: Path, written: dict[str, Any]) -> None:
    """Without an end token nothing but the length ends a text; other ids are those of config.json."""
    ids: dict[str, Any] = {"decoder_start_token_id": 7, "forced_eos_token_id": None}
    config = PegasusXConfig.preset("tiny", vocab_size=10, init_std=1.0, **ids)
    for seed in range(50):  # until a model wants to say </s> early
        model = PegasusXForConditionalGeneration.from_random(config, seed)
        early = model.generate([[7, 8, 9]], max_new_tokens=8)
        if early.shape[1] < 9:
            break
    assert early.shape[1] < 9
    assert early[0, 0] == 7
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(written))
    again = PegasusXForConditionalGeneration.from_pretrained(tmp_path).generate([[7, 8, 9]], max_new_tokens=8)
    assert again.shape[1] == (early.shape[1] if written.get("eos_token_id") else 9)

    (tmp_path / "generation_config.json").write_text(json.dumps(written | {"decoder_start_token_id": 7}))
    twin = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    theirs = twin.generate(to_torch(np.array([[7, 8, 9]])), max_new_tokens=8)
    assert again.tolist() == theirs.tolist()


def test_num_beams_1_speaks_for_beams_alone() -> None:
    config = PegasusXConfig.preset("tiny", extra={"num_beams": 8, "no_repeat_ngram_size": 3})
    model = PegasusXForConditionalGeneration.from_random(config)
    with pytest.warns(UserWarning, match="asks for no_repeat_ngram_size=3; this"):
        model.generate([[7]], max_new_tokens=1, num_beams=1)


def test_where_the_least_length_is_above_the_greatest_the_greatest_decides(transformers: ModuleType) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"), dtype="float64")
    with pytest.warns(UserWarning, match="at least 9 tokens are asked for, but at most 4"):
        ours = model.generate([[7, 8]], max_new_tokens=3, min_length=9)
    with pytest.warns(UserWarning, match="Unfeasible length constraints"):
        theirs = transformers_twin(transformers, model).generate(
            to_torch(np.array([[7, 8]])), max_new_tokens=3, min_length=9, do_sample=False
        )
    assert ours.tolist() == theirs.tolist()


def test_without_any_limit_20_new_tokens() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    assert model.generate([[7, 8, 9]], min_length=21).shape == (1, 21)


def test_the_documentations_cache_argument_is_accepted() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    static = model.generate([[7, 8]], max_new_tokens=3, cache_implementation="static")
    assert (static == model.generate([[7, 8]], max_new_tokens=3)).all()


def test_beams_are_refused_when_asked_for_and_warned_about_when_configured() -> None:
    config = PegasusXConfig.preset("tiny", extra={"num_beams": 8, "no_repeat_ngram_size": 3, "do_sample": False})
    model = PegasusXForConditionalGeneration.from_random(config)
    with pytest.raises(InputError, match="num_beams=2"):
        model.generate([[7]], num_beams=2)
    with pytest.raises(InputError, match="do_sample=True"):
        model.generate([[7]], do_sample=True)
    with pytest.warns(UserWarning, match="num_beams=8, no_repeat_ngram_size=3; this"):
        model.generate([[7]], max_new_tokens=1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_length": 1}, "max_length=1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"min_length": -1}, "min_length=-1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
    ],
)
def test_impossible_lengths_are_refused_before_the_encoder_runs(limits: dict[str, Any], message: str) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.raises(InputError, match=message):
        model.generate([[7]], **limits)


def test_encoder_outputs_serve_instead_of_ids() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    rng = np.random.default_rng(3)
    ids, mask = rng.integers(0, 256, (2, 30)), np.ones((2, 30), dtype=int)
    mask[1, 11:] = 0
    from_ids = model.generate(ids, mask, max_new_tokens=5)
    from_outputs = model.generate(encoder_outputs=model.encode(ids, mask), max_new_tokens=5)
    assert (from_ids == from_outputs).all()
