"""Settings that change scores: greedily and with beams, the tokens of transformers, alone and in any combination."""

import re
import warnings
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from backend_parameters import IN_FLOAT64, backend_on_cpu
from hf_reference import hf_reference, to_torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import seeds

from pegasusx_ref import ConfigError, InputError, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.generation import Callbacks, GenerationConfig
from pegasusx_ref.generation.logits_processors import GOLDEN, force_start, raise_end, renormalize
from pegasusx_ref.generation.search import processors_for
from pegasusx_ref.generation.token_constraints import allow_only, forbid_words, grouped_words, suppress_tokens

VOCAB = 14
ENDS = [1, 6]
tokens = st.integers(2, VOCAB - 1)
unforced = st.sampled_from([i for i in range(2, VOCAB) if i != 6])
CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "bad_words_ids": st.lists(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=3), min_size=1, max_size=5),
    "suppress_tokens": st.lists(unforced, min_size=1, max_size=3),
    "begin_suppress_tokens": st.lists(tokens, min_size=1, max_size=6),
    "forced_bos_token_id": tokens,
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 4), st.floats(0.5, 4.0)),
    "renormalize_logits": st.just(True),
    "prefix_allowed_tokens_fn": st.integers(1, 9).map(lambda key: lambda source, ids: allowed_after(key, source, ids)),
    "logits_processor": st.floats(0.1, 3.0).map(lambda by: [lambda ids, scores: scores - by * (ids[:, -1:] % 3)]),
    "min_new_tokens": st.integers(1, 5),
    "repetition_penalty": st.sampled_from([0.8, 1.7]),
    "no_repeat_ngram_size": st.integers(1, 3),
}


def allowed_after(key: int, source: int, ids: Any) -> list[int]:
    """Allow some tokens, by the source and its newest token, and never the same number of them."""
    rng = np.random.default_rng([key, source, int(ids[-1])])
    return [int(i) for i in rng.choice(VOCAB, rng.integers(1, VOCAB), replace=False)]


@lru_cache(8)
def models(transformers: ModuleType, seed: int, forced: bool) -> tuple[Any, Any]:
    config = PegasusXConfig.preset(
        "tiny", vocab_size=VOCAB, init_std=0.8, encoder_layers=1, decoder_layers=1, eos_token_id=ENDS
    ).replace(forced_eos_token_id=1 if forced else None)
    model = PegasusXForConditionalGeneration.from_random(config, seed, dtype="float64")
    return model, hf_reference(transformers, model)


def check(transformers: ModuleType, data: st.DataObject, chosen: set[str], num_beams: int) -> None:
    """Draw a model, sources and values of the chosen settings, and compare the texts."""
    import torch

    model, hf_model = models(transformers, data.draw(st.integers(0, 2)), data.draw(st.booleans()))
    rng = np.random.default_rng(data.draw(seeds))
    ids = rng.integers(2, VOCAB, (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))))
    how: dict[str, Any] = {name: data.draw(CHOICES[name]) for name in sorted(chosen)}
    assume(how.get("forced_bos_token_id") not in how.get("suppress_tokens", []))  # refused by both
    how |= {"max_new_tokens": data.draw(st.integers(1, 9)), "num_beams": num_beams, "do_sample": False}
    how |= {"return_dict_in_generate": True, "output_scores": True}
    with warnings.catch_warnings(action="ignore"):  # of lengths that do not fit
        ours = model.generate(ids, **how)
        with torch.no_grad():
            theirs = hf_model.generate(to_torch(ids), attention_mask=torch.ones(ids.shape, dtype=torch.long), **how)
    if num_beams > 1:
        scores, expected = ours.sequences_scores, theirs.sequences_scores.numpy()
        possible = expected > -1e8  # otherwise every continuation was excluded, and chance decides in transformers
        np.testing.assert_allclose(scores[possible], expected[possible], rtol=1e-5, atol=1e-5)
        assert (scores[~possible] < -1e8).all()
        same = [
            a.tolist() == b.tolist() for a, b in zip(*common(ours.sequences, theirs.sequences.numpy()), strict=True)
        ]
        assert all(same[i] for i in np.flatnonzero(possible).tolist() if not tied(theirs, i, num_beams)), how
    else:
        assert ours.sequences.tolist() == theirs.sequences.tolist(), how


def common(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut to the shorter length: texts without a possible continuation may differ in length."""
    length = min(a.shape[1], b.shape[1])
    return a[:, :length], b[:, :length]


def tied(theirs: Any, row: int, num_beams: int) -> bool:
    """Return whether a score of -inf took part in the choice: then candidates tie."""
    return any(bool((scores > -np.inf).sum() < 3 * num_beams) for scores in theirs.scores)


alone = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", list(CHOICES)[:8])
@alone
@given(st.data())
def test_each_setting_alone_equals_transformers(
    transformers: ModuleType, name: str, num_beams: int, data: st.DataObject
) -> None:
    check(transformers, data, {name}, num_beams)


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sets(st.sampled_from(list(CHOICES)), min_size=1, max_size=5))
def test_settings_in_combination_equal_transformers(
    transformers: ModuleType, num_beams: int, data: st.DataObject, chosen: set[str]
) -> None:
    check(transformers, data, chosen, num_beams)


@settings(max_examples=30)
@given(seeds, st.integers(1, 6))
def test_processors_equal_transformers(transformers: ModuleType, seed: int, length: int) -> None:
    import transformers.generation.logits_process as theirs

    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (4, length))
    scores = rng.standard_normal((4, VOCAB)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    words = [rng.integers(0, VOCAB, size).tolist() for size in (1, 1, 2, 2, 3)] + [[*ids[0, -2:].tolist(), 5], [1]]
    start, factor, key = int(rng.integers(0, 4)), float(rng.uniform(0.3, 4)), int(rng.integers(100))
    some = rng.choice(VOCAB, 3, replace=False)

    def allowed(source: int, text: Any) -> list[int]:
        return allowed_after(key, source, text)[:2]

    def new() -> np.ndarray:
        return scores.copy()

    pairs = [
        (forbid_words(ids, new(), grouped_words(words, ENDS)), theirs.NoBadWordsLogitsProcessor(words, ENDS)),
        (suppress_tokens(ids, new(), some), theirs.SuppressTokensLogitsProcessor(some)),
        (suppress_tokens(ids, new(), some, 2), theirs.SuppressTokensAtBeginLogitsProcessor(some, 2)),
        (allow_only(ids, new(), allowed, 2), theirs.PrefixConstrainedLogitsProcessor(allowed, 2)),
        (force_start(ids, new(), 3), theirs.ForcedBOSTokenLogitsProcessor(3)),
        (raise_end(ids, new(), start, factor, ENDS), theirs.ExponentialDecayLengthPenalty((start, factor), ENDS, 1)),
        (renormalize(ids, new()), theirs.LogitNormalization()),
    ]
    for ours, processor in pairs:
        expected = processor(to_torch(ids), to_torch(new())).numpy()
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6, err_msg=type(processor).__name__)


@pytest.mark.slow
@pytest.mark.parametrize("backend", IN_FLOAT64)
@settings(max_examples=50)
@given(seeds, st.integers(1, 6))
def test_processors_on_every_backend(backend: str, seed: int, length: int) -> None:
    """They select numbers, or round as float32 does; scores stay on the device."""
    ops, rng = backend_on_cpu(backend, "float64"), np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (4, length))
    scores = rng.standard_normal((4, VOCAB)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    scores[0] = -np.inf
    config = GenerationConfig(
        bad_words_ids=[[3], [2, 4], [ids[0, -1], 5]],
        suppress_tokens=[7, 8],
        begin_suppress_tokens=[9],
        forced_bos_token_id=4 if seed % 2 else None,
        exponential_decay_length_penalty=[1, 2.5],
        renormalize_logits=True,
        eos_token_id=ENDS,
    )
    callbacks = Callbacks(prefix_allowed_tokens_fn=lambda source, text: allowed_after(seed, source, text))
    found = {}
    for each in (ops, GOLDEN):
        found[each.name] = each.to_float32(scores)
        for process in processors_for(config, None, each, callbacks):
            with np.errstate(invalid="ignore"):  # as in `search`
                found[each.name] = process(ids, found[each.name])
    on_host = [np.asarray(each.to_numpy(found[each.name])) for each in (ops, GOLDEN)]
    np.testing.assert_allclose(on_host[0], on_host[1], rtol=1e-6, atol=1e-6)
    assert np.isneginf(on_host[0]).any()


def test_a_row_without_any_possible_token_stays_so() -> None:
    scores = np.full((2, 4), -np.inf, dtype=np.float32)
    scores[0, 2] = -7
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(renormalize(np.zeros((2, 1)), scores)[:, 1:3], [[-np.inf, 0], [-np.inf, -np.inf]])


def test_a_large_factor_does_not_overflow_python() -> None:
    scores = np.array([[0.5, -2, 3]], dtype=np.float32)
    found = raise_end(np.zeros((1, 2000), dtype=np.int64), scores, 1, 1e20, [1])
    assert found.tolist()[0][0] == 0.5
    assert 1e30 < found[0, 1] < np.inf


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"bad_words_ids": [3]}, "bad_words_ids=[3] must be a list of lists of token ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids=[[]] must be a list of lists of token ids"),
        ({"bad_words_ids": [[3, 256]]}, "bad_words_ids=[[3, 256]] must be a token id in [0, vocab_size=256)"),
        ({"suppress_tokens": [-1]}, "suppress_tokens=[-1] must be a token id in"),
        ({"begin_suppress_tokens": ["a"]}, "begin_suppress_tokens=['a'] must be a token id in"),
        ({"forced_bos_token_id": [3]}, "forced_bos_token_id=[3] must be a token id in"),
        ({"suppress_tokens": [1]}, "forced_eos_token_id=[1] is in suppress_tokens: remove it from one of them"),
        ({"exponential_decay_length_penalty": 2.0}, "exponential_decay_length_penalty=2.0 must be [start, factor]"),
        (
            {"exponential_decay_length_penalty": (2.5, 1.5)},
            "exponential_decay_length_penalty: start=2.5 must be an int",
        ),
        ({"exponential_decay_length_penalty": (2, -1)}, "exponential_decay_length_penalty: factor=-1 must be a number"),
        ({"renormalize_logits": "yes"}, "renormalize_logits='yes' must be true or false"),
    ],
)
def test_impossible_values_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny")).generate([[7]], **how)


@pytest.mark.parametrize("returned", [[], [256], [-1], [1.5], 7, None, [[1]], "a"], ids=str)
def test_what_may_not_follow_is_named(returned: Any) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.raises(InputError, match=r"prefix_allowed_tokens_fn returned .*: return at least one token id in"):
        model.generate([[7]], max_new_tokens=2, prefix_allowed_tokens_fn=lambda source, ids: returned)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("sampled", [False, True])
def test_processors_of_transformers_run_on_the_torch_backend(
    transformers: ModuleType, num_beams: int, sampled: bool
) -> None:
    from transformers.generation.logits_process import LogitsProcessorList, SuppressTokensLogitsProcessor

    ids = np.random.default_rng(0).integers(2, VOCAB, (2, 9))
    config = models(transformers, 0, False)[0].config
    model = PegasusXForConditionalGeneration.from_random(config, 0, "torch", "cpu", "float64")
    how: dict[str, Any] = {"max_new_tokens": 6, "num_beams": num_beams, "do_sample": sampled, "seed": 4}
    plain = model.generate(ids, **how)
    suppressed = [int(plain[0, 1]), int(plain[1, 2])]
    found = model.generate(
        ids, **how, logits_processor=LogitsProcessorList([SuppressTokensLogitsProcessor(suppressed)])
    )
    assert found.tolist() == model.generate(ids, **how, suppress_tokens=suppressed).tolist() != plain.tolist()


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 0}], ids=str)
def test_functions_get_the_arrays_of_the_backend_and_keep_none(backend: str, how: dict[str, Any]) -> None:
    config = PegasusXConfig.preset("tiny", vocab_size=VOCAB)
    model = PegasusXForConditionalGeneration.from_random(config, 0, dtype="float64")
    model = PegasusXForConditionalGeneration(config, model.state_dict(), backend_on_cpu(backend, "float64"))
    kind, seen = type(model.ops.asarray(np.zeros(1))), []

    def keep(ids: Any, scores: Any) -> Any:
        assert isinstance(ids, kind)
        assert isinstance(scores, kind)
        seen.append(scores)
        return scores

    with_it = model.generate([[7, 8]], max_new_tokens=4, min_new_tokens=4, logits_processor=keep, **how)
    assert with_it.tolist() == model.generate([[7, 8]], max_new_tokens=4, min_new_tokens=4, **how).tolist()
    copies = [np.array(model.ops.to_numpy(scores)) for scores in seen[:1]]
    assert np.isneginf(copies[0][:, 1]).all()
    assert np.isfinite(copies[0][0, 2:]).all()  # sampling and beam search have changed their own copy


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"logits_processor": 3}, "logits_processor=3 must be a list of functions"),
        ({"logits_processor": [3]}, "logits_processor=[3] must be a list of functions"),
        ({"logits_processor": [lambda ids, scores: None]}, "returned None: return scores of shape (1, 256)"),
        ({"logits_processor": [lambda ids, scores: scores[0]]}, "return scores of shape (1, 256)"),
        ({"prefix_allowed_tokens_fn": [1]}, "prefix_allowed_tokens_fn=[1] must be a function"),
    ],
)
def test_what_is_not_a_processor_is_refused(argument: dict[str, Any], message: str) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    with pytest.raises(InputError, match=re.escape(message)):
        model.generate([[7]], max_new_tokens=2, **argument)
