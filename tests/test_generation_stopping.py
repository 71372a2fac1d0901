"""What ends a text besides end tokens: strings, a time limit, functions of the caller; as in transformers."""

import re
import time
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from backend_parameters import IN_FLOAT64, backend_on_cpu
from hf_reference import hf_reference, to_torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import seeds

from pegasusx_ref import ConfigError, InputError, PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.generation.stopping import stop_strings


class LikeTransformers:
    """Our tokenizer, with what transformers' stop strings ask of one."""

    def __init__(self, tokenizer: PegasusTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens = {token_id: token for token, token_id in tokenizer.get_vocab().items()}

    def get_vocab(self) -> dict[str, int]:
        return {f"{i} {token}": i for i, token in self._tokens.items()}

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": self._tokenizer.encode(text)[:-1]}

    def _convert_id_to_token(self, token_id: int) -> str:
        return f"{token_id} {self._tokens[token_id]}"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._tokenizer.decode([int(token.split()[0]) for token in tokens])


@st.composite
def texts_and_strings(draw: st.DrawFn, tokenizer: PegasusTokenizer) -> tuple[np.ndarray, list[str]]:
    """Draw ids, and strings that are parts of their text or of other texts."""
    rng = np.random.default_rng(draw(seeds))
    ids = rng.integers(0, tokenizer.vocab_size, (3, draw(st.integers(1, 8))))
    ids[rng.random(ids.shape) < 0.5] = tokenizer.encode("the")[0]
    whole = [tokenizer.decode([ids[0, 0], *row])[len(tokenizer.decode([ids[0, 0]])) :] for row in ids.tolist()]
    strings = []
    for text in whole:
        start = draw(st.integers(0, max(len(text) - 1, 0)))
        strings.append(text[start : start + draw(st.integers(1, 12))] or "x")
        if draw(st.booleans()):
            strings[-1] = text[-draw(st.integers(1, 9)) :] or "y"
    return ids, strings[: draw(st.integers(1, 3))]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_strings_end_a_text_where_transformers_ends_it(
    transformers: ModuleType, tokenizer: PegasusTokenizer, data: st.DataObject
) -> None:
    from transformers.generation.stopping_criteria import StopStringCriteria

    ids, strings = data.draw(texts_and_strings(tokenizer))
    theirs = StopStringCriteria(LikeTransformers(tokenizer), strings)
    ours = stop_strings(strings, tokenizer)
    for length in range(1, ids.shape[1] + 1):
        expected = theirs(to_torch(ids[:, :length]), None).tolist()
        assert ours(ids[:, :length]).tolist() == expected, (strings, length)


@pytest.fixture(scope="module")
def model(tokenizer: PegasusTokenizer) -> PegasusXForConditionalGeneration:
    config = PegasusXConfig.preset(
        "tiny", vocab_size=tokenizer.vocab_size, init_std=0.8, encoder_layers=1, decoder_layers=1
    ).replace(forced_eos_token_id=None)
    return PegasusXForConditionalGeneration.from_random(config, 1, dtype="float64")


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
def test_texts_that_end_with_strings_equal_transformers(
    transformers: ModuleType, tokenizer: PegasusTokenizer, model: PegasusXForConditionalGeneration, num_beams: int
) -> None:
    """The strings are parts of what the model generates without them."""
    import torch

    hf_model, rng, lengths = hf_reference(transformers, model), np.random.default_rng(0), set()
    for _ in range(100):
        ids = rng.integers(2, tokenizer.vocab_size, (3, 10))
        how: dict[str, Any] = {"max_new_tokens": 10, "num_beams": num_beams, "do_sample": False}
        text = tokenizer.decode(model.generate(ids, **how)[rng.integers(3)][1:])
        start = int(rng.integers(len(text) // 2, len(text)))
        how["stop_strings"] = [text[start : start + int(rng.integers(1, 9))], "zzz"]
        ours = model.generate(ids, tokenizer=tokenizer, **how)
        with torch.no_grad():
            theirs = hf_model.generate(
                to_torch(ids), attention_mask=torch.ones(ids.shape, dtype=torch.long), **how,
                tokenizer=LikeTransformers(tokenizer),
            )  # fmt: skip
        assert ours.tolist() == theirs.tolist()
        lengths.add(ours.shape[1])
    assert len(lengths) > 2


def test_strings_need_the_tokenizer(model: PegasusXForConditionalGeneration, tokenizer: PegasusTokenizer) -> None:
    with pytest.raises(InputError, match=re.escape("stop_strings='.' need the model's tokenizer: pass tokenizer=")):
        model.generate([[7]], max_new_tokens=2, stop_strings=".")
    for wrong in ("", [""], 3, ["a", 3], ["a" * 5000]):
        with pytest.raises(ConfigError, match=r"stop_strings=.* must be a text or a list of at most 1,024, of 1 to"):
            model.generate([[7]], max_new_tokens=2, stop_strings=wrong, tokenizer=tokenizer)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 0}], ids=str)
def test_after_the_time_limit_one_more_token_is_generated(
    model: PegasusXForConditionalGeneration, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes on a second at each look; beam search returns the best text so far."""
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    ids = model.generate([[7, 8], [9, 10]], max_new_tokens=30, min_new_tokens=30, max_time=3.5, **how)
    assert ids.shape == (2, 1 + 4)
    assert model.generate([[7]], max_new_tokens=9, min_new_tokens=9, max_time=1e9, **how).shape == (1, 10)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_time_at_all_equals_transformers(
    transformers: ModuleType, model: PegasusXForConditionalGeneration, num_beams: int
) -> None:
    ids = np.array([[7, 8, 9], [120, 130, 140]])
    how: dict[str, Any] = {"max_new_tokens": 9, "max_time": 0.0, "num_beams": num_beams}
    theirs = hf_reference(transformers, model).generate(to_torch(ids), **how, do_sample=False)
    assert model.generate(ids, **how).tolist() == theirs.tolist()
    assert theirs.shape == (2, 2)


@pytest.mark.parametrize("seconds", [-1, "soon", float("nan"), True])
def test_impossible_times_are_refused(model: PegasusXForConditionalGeneration, seconds: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_time=.* must be a number from 0 to 1e"):
        model.generate([[7]], max_new_tokens=2, max_time=seconds)


@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_functions_of_the_caller_end_texts(backend: str, num_beams: int) -> None:
    config = PegasusXConfig.preset("tiny", forced_eos_token_id=None)
    golden = PegasusXForConditionalGeneration.from_random(config, 0, dtype="float64")
    model = PegasusXForConditionalGeneration(config, golden.state_dict(), backend_on_cpu(backend, "float64"))
    kind = type(model.ops.asarray(np.zeros(1)))

    def second_row_ends(ids: Any, scores: Any) -> Any:
        assert isinstance(ids, kind)
        assert scores is None
        return [row == 1 for row in range(len(ids))] if num_beams == 1 else ids.shape[1] == 4

    ids = model.generate(
        [[7], [8]], max_new_tokens=6, min_new_tokens=6, num_beams=num_beams, stopping_criteria=[second_row_ends]
    )
    if num_beams == 1:
        assert (ids[1, 2:] == 0).all()
        assert (ids[0, 2:] != 0).any()
    else:
        assert ids.shape == (2, 4)


def test_criteria_of_transformers_run_on_the_torch_backend(transformers: ModuleType) -> None:
    from transformers import EosTokenCriteria, StoppingCriteriaList

    config = PegasusXConfig.preset("tiny", forced_eos_token_id=None, init_std=0.8)
    model = PegasusXForConditionalGeneration.from_random(config, 0, "torch", "cpu")
    ids = model.generate([[7, 8, 9]], max_new_tokens=8, min_new_tokens=8)
    end = int(ids[0, 3])
    found = model.generate(
        [[7, 8, 9]], max_new_tokens=8, min_new_tokens=8, stopping_criteria=StoppingCriteriaList([EosTokenCriteria(end)])
    )
    first = ids[0].tolist().index(end, 1)
    assert found.tolist() == ids[:, : first + 1].tolist()


@pytest.mark.parametrize("returned", [None, [True, False, True], "yes"])
def test_what_is_not_a_criterion_is_refused(model: PegasusXForConditionalGeneration, returned: Any) -> None:
    with pytest.raises(
        InputError, match=r"stopping_criteria: .* returned .*: return a boolean for each of the 1 texts"
    ):
        model.generate([[7]], max_new_tokens=2, stopping_criteria=[lambda ids, scores: returned])
    with pytest.raises(InputError, match="stopping_criteria=3 must be a list of functions"):
        model.generate([[7]], max_new_tokens=2, stopping_criteria=3)
