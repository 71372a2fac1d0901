"""Decoding: token by token what transformers writes, greedily and with beams; sampling by its distribution."""

import json
import re
import shutil
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hf_reference import hf_reference, to_torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import Batch, batches, configs, seeds

from pegasusx_ref import ConfigError, InputError, PegasusXConfig, PegasusXForConditionalGeneration, listen
from pegasusx_ref.generation import GenerationConfig, search
from pegasusx_ref.generation.logits_processors import (
    forbid_early_end,
    forbid_repeated_ngrams,
    force_end,
    penalize_repetition,
)
from pegasusx_ref.generation.warpers import keep_top_k, keep_top_p, scale_temperature
from pegasusx_ref.golden.head import log_softmax

SAMPLED = {"do_sample": True}
GAP = 1e-5  # transformers compares scores in float32: where the deciding gap is smaller, its rounding may decide


def length_limits(draw: st.DrawFn) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if draw(st.booleans()):
        values["max_length"] = draw(st.integers(2, 12))
    else:
        values["max_new_tokens"] = draw(st.integers(1, 14))
    longest = values.get("max_length") or 1 + values["max_new_tokens"]
    if draw(st.booleans()):
        values["min_length"] = draw(st.integers(0, longest))
    if draw(st.booleans()):
        values["min_new_tokens"] = draw(st.integers(0, longest - 1))
    return values


@st.composite
def settings_of(draw: st.DrawFn) -> dict[str, Any]:
    values = length_limits(draw)
    if draw(st.booleans()):
        values["no_repeat_ngram_size"] = draw(st.integers(1, 4))
    if draw(st.booleans()):
        values["encoder_no_repeat_ngram_size"] = draw(st.integers(1, 4))
    if draw(st.booleans()):
        values["repetition_penalty"] = draw(st.sampled_from([0.8, 1.2, 2.0]))
    return values


class Case(NamedTuple):
    model: PegasusXForConditionalGeneration
    batch: Batch
    settings: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    eos = draw(st.sampled_from([1, [1], [1, 3], [4, 2, 1]]))
    forced = draw(st.sampled_from([None, 1, [1, 4]]))
    config = draw(configs(decoder_layers=2, init_std=1.0, eos_token_id=eos, forced_eos_token_id=forced))
    model = PegasusXForConditionalGeneration.from_random(config, draw(seeds), dtype="float64")
    return Case(model, draw(batches(config)), draw(settings_of()))


def their_generate(transformers: ModuleType, case: Case, **more: Any) -> Any:
    hf_model = hf_reference(transformers, case.model)
    ids, mask, _ = case.batch
    mask = np.ones_like(ids) if mask is None else mask
    settings = {"num_beams": 1, "do_sample": False} | case.settings | more
    return hf_model.generate(to_torch(ids), attention_mask=to_torch(mask), **settings)


def quietly(case: Case, **more: Any) -> Any:
    """Generate; lengths that do not fit are transformers' own warning too."""
    with warnings.catch_warnings(action="ignore"):
        return case.model.generate(case.batch.input_ids, case.batch.attention_mask, **case.settings, **more)


many = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


@many
@given(cases())
def test_greedy_tokens_equal_transformers(transformers: ModuleType, case: Case) -> None:
    ours = quietly(case)
    logits = case.model(case.batch.input_ids, case.batch.attention_mask, ours).logits
    gaps = np.diff(np.sort(logits, axis=-1), axis=-1)
    assume((gaps > GAP).all())  # any two tokens may be the deciding ones once processors rule some out
    assert ours.tolist() == their_generate(transformers, case).tolist()


@pytest.mark.slow
@many
@given(cases(), st.data())
def test_beam_search_equals_transformers(transformers: ModuleType, case: Case, data: st.DataObject) -> None:
    beams = data.draw(st.integers(2, 5))
    more: dict[str, Any] = {
        "num_beams": beams,
        "length_penalty": data.draw(st.sampled_from([0.0, 0.8, 1.0, 2.0, -1.0])),
        "early_stopping": data.draw(st.sampled_from([True, False, "never"])),
        "num_return_sequences": 1,
        "return_dict_in_generate": True,
    }
    ours = quietly(case, **more)
    theirs = their_generate(transformers, case, **more, output_scores=True)
    if ours.sequences.tolist() != theirs.sequences.tolist():
        # Where scores tie, either text is right; then both have the same score, but for a few of float32's roundings.
        np.testing.assert_allclose(ours.sequences_scores, theirs.sequences_scores.numpy(), rtol=1e-6, atol=GAP)
    np.testing.assert_allclose(ours.sequences_scores, theirs.sequences_scores.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.8, 3.0])
def test_beam_search_stops_where_transformers_stops(
    transformers: ModuleType, early_stopping: bool | str, length_penalty: float
) -> None:
    """Texts of a batch end at different steps, and beams of one text too: what has ended, what may still win."""
    ends = [1, 5, 9, 11]
    shape = {"vocab_size": 12, "init_std": 0.8, "encoder_layers": 1, "decoder_layers": 1}
    config = PegasusXConfig.preset("tiny", **shape, eos_token_id=ends)
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 12, (4, 9))
    mask = (np.arange(9) < np.array([[9], [4], [7], [1]])).astype(np.int64)
    settings: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12}
    settings |= {"early_stopping": early_stopping, "length_penalty": length_penalty}
    lengths = set()
    for seed in range(4):
        model = PegasusXForConditionalGeneration.from_random(config, seed, dtype="float64")
        case = Case(model, Batch(ids, mask, ids), settings)
        ours = quietly(case, return_dict_in_generate=True)
        theirs = their_generate(transformers, case, return_dict_in_generate=True, output_scores=True)
        assert ours.sequences.tolist() == theirs.sequences.tolist()
        np.testing.assert_allclose(ours.sequences_scores, theirs.sequences_scores.numpy(), rtol=1e-5, atol=1e-5)
        lengths.update(np.isin(ours.sequences[:, 1:], ends).argmax(axis=1).tolist())
    assert len(lengths) > 1, "every text ended at the same step: nothing was tested"


def test_where_every_token_is_ruled_out_the_start_token_is_returned(transformers: ModuleType) -> None:
    """Then every continuation scores what no text scores; transformers returns some of them, by chance of its sort."""
    config = PegasusXConfig.preset("tiny", vocab_size=5, decoder_start_token_id=3)
    model = PegasusXForConditionalGeneration.from_random(config, dtype="float64")
    settings: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 8, "min_new_tokens": 8, "no_repeat_ngram_size": 1}
    case = Case(model, Batch(np.array([[4, 3]]), None, np.array([[0]])), settings)
    ours = quietly(case, return_dict_in_generate=True)
    theirs = their_generate(transformers, case, return_dict_in_generate=True, output_scores=True)
    assert ours.sequences.tolist() == [[3]]
    assert ours.sequences_scores.tolist() == theirs.sequences_scores.tolist() == [-1e9]


def test_beams_share_the_source_and_keep_their_own_history() -> None:
    """The score of each result is what the model gives its tokens when the text is decoded alone, without a cache."""
    config = PegasusXConfig.preset("tiny", vocab_size=40, init_std=0.6, forced_eos_token_id=None)
    model = PegasusXForConditionalGeneration.from_random(config, dtype="float64")
    ids = np.random.default_rng(0).integers(2, 40, (2, 21))
    settings: dict[str, Any] = {"num_beams": 6, "num_return_sequences": 6, "max_new_tokens": 9, "length_penalty": 0.0}
    output = model.generate(ids, **settings, return_dict_in_generate=True)
    assert all(len(set(map(tuple, rows.tolist()))) == 6 for rows in output.sequences.reshape(2, 6, -1))
    for i, (text, score) in enumerate(zip(output.sequences, output.sequences_scores, strict=True)):
        written = next((n for n in range(1, 10) if text[n] == 1), 9)
        logits = model(ids[i // 6, None], decoder_input_ids=text[None, :written]).logits[0]
        total = log_softmax(logits)[np.arange(written), text[1 : written + 1]].sum()
        assert abs(score - total) < 1e-4


def fixed_logits(rows: list[list[int]], vocab_size: int = 9) -> Any:
    """A model that predicts row[t] at step t for every input."""
    step = iter(range(100))

    def next_logits(ids_BL: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
        t = next(step)
        logits = np.random.default_rng(t).random((len(rows), 1, vocab_size))
        for b, row in enumerate(rows):
            logits[b, 0, row[min(t, len(row) - 1)]] += 2
        return logits

    return next_logits


def greedily(rows: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    ids, scores = search(fixed_logits(rows), len(rows), config)
    assert scores is None
    assert ids.dtype == np.int64
    return [[int(i) for i in row] for row in ids]


def test_rows_that_end_are_padded_until_the_longest_ends() -> None:
    ids = greedily([[5, 1], [6, 7, 8, 1]], GenerationConfig(max_length=10, pad_token_id=0))
    assert ids == [[0, 5, 1, 0, 0], [0, 6, 7, 8, 1]]


def test_the_longest_text_ends_where_it_must() -> None:
    assert greedily([[5]], GenerationConfig(max_length=4)) == [[0, 5, 5, 5]]
    assert greedily([[5]], GenerationConfig(max_length=4, forced_eos_token_id=1)) == [[0, 5, 5, 1]]


def test_forced_end_goes_before_the_least_length() -> None:
    config = GenerationConfig(max_length=4, min_length=4, forced_eos_token_id=1)
    assert greedily([[1]], config)[0][-1] == 1


def test_among_equal_logits_the_lowest_id_wins() -> None:
    def tied(ids_BL: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
        return np.array([[[0.0, -1.0, 3.0, 3.0 + 1e-12]]])

    assert search(tied, 1, GenerationConfig(max_new_tokens=1))[0].tolist() == [[0, 2]]


@given(seeds, st.integers(1, 12), st.integers(2, 9))
def test_logits_processors_equal_transformers(transformers: ModuleType, seed: int, length: int, vocab: int) -> None:
    import transformers.generation.logits_process as theirs

    rng = np.random.default_rng(seed)
    ids, sources = rng.integers(0, vocab, (3, length)), rng.integers(0, vocab, (3, 7))
    scores = rng.standard_normal((3, vocab)).astype(np.float32)
    size, penalty, p, k = int(rng.integers(1, 5)), float(rng.uniform(0.5, 2)), float(rng.uniform(0.05, 0.95)), 3
    eos = [1, vocab - 1]
    pairs = [
        (forbid_early_end(ids, scores.copy(), 6, eos), theirs.MinLengthLogitsProcessor(6, eos, device="cpu")),
        (force_end(ids, scores.copy(), 6, eos), theirs.ForcedEOSTokenLogitsProcessor(6, eos, device="cpu")),
        (penalize_repetition(ids, scores.copy(), penalty), theirs.RepetitionPenaltyLogitsProcessor(penalty)),
        (forbid_repeated_ngrams(ids, scores.copy(), size), theirs.NoRepeatNGramLogitsProcessor(size)),
        (
            forbid_repeated_ngrams(ids, scores.copy(), size, sources),
            theirs.EncoderNoRepeatNGramLogitsProcessor(size, to_torch(sources)),
        ),
        (scale_temperature(scores, penalty), theirs.TemperatureLogitsWarper(penalty)),
        (keep_top_k(scores, k), theirs.TopKLogitsWarper(k)),
        (keep_top_p(scores, p), theirs.TopPLogitsWarper(p)),
    ]
    for ours, processor in pairs:
        expected = processor(to_torch(ids), to_torch(scores.copy())).numpy()
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=type(processor).__name__)


def test_sampling_is_reproducible_and_follows_the_distribution() -> None:
    config = PegasusXConfig.preset("tiny", vocab_size=12, init_std=0.3, forced_eos_token_id=None)
    model = PegasusXForConditionalGeneration.from_random(config, dtype="float64")
    source = model.encode([[5, 6, 7, 8]])
    logits = model(encoder_outputs=source, decoder_input_ids=[[0]]).logits[0, 0]

    def sample(seed: int, **settings: Any) -> np.ndarray:
        wanted: dict[str, Any] = {"do_sample": True, "max_new_tokens": 1, "num_return_sequences": 250, "top_k": 0}
        ids: np.ndarray = model.generate(encoder_outputs=source, **(wanted | settings), seed=seed)
        return ids[:, 1]

    def frequencies(**settings: Any) -> np.ndarray:
        return np.bincount(np.concatenate([sample(seed, **settings) for seed in range(16)]), minlength=12) / 4000

    assert (sample(3) == sample(3)).all()
    assert (sample(3) != sample(4)).any()
    five_sigma = 5 * np.sqrt(0.25 / 4000)
    probabilities = np.exp(log_softmax(logits))
    assert np.abs(frequencies() - probabilities).max() < five_sigma
    assert np.abs(frequencies(temperature=0.2) - np.exp(log_softmax(logits / 0.2))).max() < five_sigma
    order = np.argsort(-logits)
    assert set(sample(3, top_k=2).tolist()) == set(order[:2].tolist())
    kept = order[: 1 + int((np.cumsum(probabilities[order]) < 0.5).sum())]
    assert set(sample(3, top_p=0.5).tolist()) == set(kept.tolist())


def test_samples_of_one_source_do_not_see_each_other() -> None:
    config = PegasusXConfig.preset("tiny", vocab_size=12, init_std=0.5, forced_eos_token_id=None, eos_token_id=11)
    model = PegasusXForConditionalGeneration.from_random(config, dtype="float64")
    seen = []

    def see(name: str, value: np.ndarray) -> np.ndarray:
        seen.append(value.copy())
        return value

    with listen(see, "lm_head"):
        texts = model.generate([[5, 6, 7]], do_sample=True, num_return_sequences=3, max_new_tokens=5, seed=0)
    for row, text in enumerate(texts):
        alone = model([[5, 6, 7]], decoder_input_ids=text[None, :-1]).logits[0]
        for step, logits in enumerate(seen):
            if 11 not in text[1 : step + 1]:
                np.testing.assert_allclose(logits[0, row], alone[step], rtol=0, atol=1e-12)


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
def test_bad_token_ids_are_refused_when_they_are_used(model_folder: Path, tmp_path: Path, ids: dict[str, Any]) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    config = PegasusXConfig.from_pretrained(model_folder)
    ids = {name: config.vocab_size if value == 256 else value for name, value in ids.items()}
    (tmp_path / "generation_config.json").write_text(json.dumps(ids))
    (name,) = ids
    replacement: dict[str, Any] = {name: 2}
    model = PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"{name}=.* must be a token id in"):
        model.generate([[7]], max_new_tokens=1)
    assert model.generate([[7]], max_new_tokens=1, **replacement).shape == (1, 2)


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
    hf_model = transformers.PegasusXForConditionalGeneration.from_pretrained(tmp_path)
    theirs = hf_model.generate(to_torch(np.array([[7, 8, 9]])), max_new_tokens=8)
    assert again.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams=0 must be an integer from 1 to 1,024"),
        ({"num_beams": 2.0}, "num_beams=2.0 must be an integer"),
        ({"num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=1"),
        ({"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences=3 is more than num_beams=2"),
        (SAMPLED | {"num_return_sequences": 3, "num_beams": 2}, "num_return_sequences=3 is more than num_beams=2"),
        (SAMPLED | {"temperature": 0.0}, "temperature=0.0 must be a number from 1e-30 to 1e+30"),
        (SAMPLED | {"temperature": 0.0}, "for the best token, do_sample=False"),
        (SAMPLED | {"top_p": 1.5}, "top_p=1.5 must be a number from 0 to 1 (a probability"),
        (
            SAMPLED | {"top_k": -1},
            "top_k=-1 must be an integer from 0 to 16,777,216 (the largest vocabulary; 0 for all",
        ),
        ({"repetition_penalty": float("nan")}, "repetition_penalty=nan must be a number"),
        ({"num_beams": 2, "length_penalty": "long"}, "length_penalty='long' must be a number"),
        ({"num_beams": 10**12}, "num_beams=1000000000000 must be an integer from 1 to 1,024"),
        ({"num_beams": 2, "length_penalty": 1e300}, "length_penalty=1e+300 must be a number from -6 to 6"),
        ({"repetition_penalty": 10**400}, "must be a number from 1e-30 to 1e+30"),
        ({"num_beams": 2, "early_stopping": 1}, "early_stopping=1: choose True, False or 'never'"),
        ({"num_beams": 2, "early_stopping": "maybe"}, "early_stopping='maybe': choose True, False or 'never'"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size=-2 must be"),
        ({"eos_token_id": 256}, "eos_token_id=256 must be a token id"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.raises(ConfigError, match=re.escape(message)):
        model.generate([[7]], max_new_tokens=2, **settings)


def test_ngrams_of_the_source_need_its_ids() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.raises(InputError, match="encoder_no_repeat_ngram_size=3 compares with the source"):
        model.generate(encoder_outputs=model.encode([[7, 8]]), encoder_no_repeat_ngram_size=3, max_new_tokens=2)


def test_where_the_least_length_is_above_the_greatest_the_greatest_decides(transformers: ModuleType) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"), dtype="float64")
    with pytest.warns(UserWarning, match="the minimum length of 9 tokens exceeds the maximum of 4"):
        ours = model.generate([[7, 8]], max_new_tokens=3, min_length=9)
    with pytest.warns(UserWarning, match="Unfeasible length constraints"):
        theirs = hf_reference(transformers, model).generate(
            to_torch(np.array([[7, 8]])), max_new_tokens=3, min_length=9, do_sample=False
        )
    assert ours.tolist() == theirs.tolist()


def test_without_any_limit_20_new_tokens() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.warns(UserWarning, match="no maximum length is set: at most 20 tokens are generated; pass max_new"):
        ids = model.generate([[7, 8, 9]], min_length=21)
    assert ids.shape == (1, 21)


def test_the_documentations_cache_argument_is_accepted() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    static = model.generate([[7, 8]], max_new_tokens=3, cache_implementation="static")
    assert (static == model.generate([[7, 8]], max_new_tokens=3)).all()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_length": 1}, "max_length=1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"min_length": -1}, "min_length=-1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ({"max_new_tokens": 10**12}, "max_new_tokens=1000000000000"),
    ],
)
def test_impossible_lengths_are_refused_before_the_encoder_runs(limits: dict[str, Any], message: str) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.raises(ConfigError, match=message):
        model.generate([[7]], **limits)


def test_encoder_outputs_serve_instead_of_ids() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    rng = np.random.default_rng(3)
    ids, mask = rng.integers(0, 256, (2, 30)), np.ones((2, 30), dtype=int)
    mask[1, 11:] = 0
    from_ids = model.generate(ids, mask, max_new_tokens=5)
    from_outputs = model.generate(encoder_outputs=model.encode(ids, mask), max_new_tokens=5)
    assert (from_ids == from_outputs).all()
