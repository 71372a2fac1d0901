"""What `generate` returns besides ids: scores, attentions, hidden states; as transformers, in its layout."""

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from backend_parameters import IN_FLOAT64, backend_on_cpu
from hf_reference import eager_hf_reference, to_torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import seeds

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.golden.head import log_softmax

VOCAB = 14
CONFIG = PegasusXConfig.preset("tiny", vocab_size=VOCAB, init_std=0.8, eos_token_id=[1, 6], forced_eos_token_id=None)
ALL: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


def close(ours: Any, theirs: Any, tolerance: float, name: str) -> None:
    """Compare nested tuples of arrays."""
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple), name
        assert len(ours) == len(theirs), name
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            close(a, b, tolerance, f"{name}[{i}]")
        return
    assert ours.shape == tuple(theirs.shape), name
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=tolerance, atol=tolerance, err_msg=name)


@lru_cache(3)
def models(transformers: ModuleType, seed: int) -> tuple[Any, Any]:
    model = PegasusXForConditionalGeneration.from_random(CONFIG, seed, dtype="float64")
    return model, eager_hf_reference(transformers, model, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(seeds, st.integers(1, 3), st.integers(1, 8), st.data())
def test_every_output_equals_transformers(
    transformers: ModuleType, num_beams: int, seed: int, batch: int, new_tokens: int, data: st.DataObject
) -> None:
    import torch

    model, hf_model = models(transformers, seed % 3)
    ids = np.random.default_rng(seed).integers(2, VOCAB, (batch, 11))
    mask = (np.arange(11) < np.random.default_rng(seed + 1).integers(1, 12, (batch, 1))).astype(np.int64)
    how: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": new_tokens, "do_sample": False}
    how["num_return_sequences"] = data.draw(st.integers(1, num_beams))
    how["length_penalty"] = data.draw(st.sampled_from([0.0, 1.0])) if num_beams > 1 else None
    how["repetition_penalty"] = data.draw(st.sampled_from([None, 1.5]))
    with torch.no_grad():
        theirs = hf_model.generate(to_torch(ids), attention_mask=to_torch(mask), **how, **ALL)
    ours = model.generate(ids, mask, **how, **ALL)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    for name in ("scores", "logits"):
        close(ours[name], theirs[name], 1e-4, name)  # float32, both; large numbers, because the weights are
    for name in ("decoder_attentions", "cross_attentions", "decoder_hidden_states"):
        close(ours[name], theirs[name], 1e-9, name)
    indices = theirs.beam_indices if num_beams > 1 else None
    if num_beams > 1:
        assert np.array_equal(ours.beam_indices, theirs.beam_indices)
    for name, normalize in (("transition_scores", False), ("token_log_probs", True)):
        expected = hf_model.compute_transition_scores(
            theirs.sequences, theirs.scores, indices, normalize_logits=normalize
        )
        close(ours[name], expected, 1e-4, name)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "seed": 0}])
@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_outputs_are_those_of_a_call_with_the_text(backend: str, how: dict[str, Any]) -> None:
    """Decoded again in one call, each row has these logits, attentions and hidden states; so has the encoder."""
    weights = PegasusXForConditionalGeneration.from_random(CONFIG, 1, dtype="float64").state_dict()
    model = PegasusXForConditionalGeneration(CONFIG, weights, backend_on_cpu(backend, "float64"))
    ids = np.random.default_rng(0).integers(2, VOCAB, (2, 21))
    output = model.generate(ids, max_new_tokens=5, min_new_tokens=5, cache_implementation="static", **how, **ALL)
    assert output.sequences.tolist() == model.generate(ids, max_new_tokens=5, min_new_tokens=5, **how).tolist()
    each = len(output.sequences) // 2
    beams = output.beam_indices
    flags: dict[str, Any] = {"output_attentions": True, "output_hidden_states": True}
    for i, text in enumerate(output.sequences):
        whole: Any = model(ids[i // each, None], decoder_input_ids=text[None, :-1], **flags)
        for t in range(5):
            row = i if beams is None else beams[i, t]
            np.testing.assert_allclose(output.logits[t][row], whole.logits[0, t], rtol=1e-5, atol=1e-5)
            for layer in range(2):
                own = whole.decoder_attentions[layer][0, :, t, : t + 1]
                np.testing.assert_allclose(output.decoder_attentions[t][layer][row][:, 0], own, atol=1e-9)
                cross = whole.cross_attentions[layer][0, :, t]
                np.testing.assert_allclose(output.cross_attentions[t][layer][row][:, 0], cross, atol=1e-9)
            for layer in range(3):
                state = whole.decoder_hidden_states[layer][0, t]
                np.testing.assert_allclose(output.decoder_hidden_states[t][layer][row][0], state, atol=1e-9)
            log_probs = log_softmax(output.scores[t][row])
            np.testing.assert_allclose(output.token_log_probs[i, t], log_probs[text[t + 1]], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(output.transition_scores[i, t], output.scores[t][row][text[t + 1]], rtol=1e-6)
    encoded: Any = model.encode(ids, **flags)
    for found, expected in zip(output.encoder_hidden_states, encoded.hidden_states, strict=True):
        np.testing.assert_array_equal(found, expected)
    for layer, expected in zip(output.encoder_attentions, encoded.attentions, strict=True):
        np.testing.assert_array_equal(layer["global"], expected["global"])
    again = model.generate(encoder_outputs=encoded, max_new_tokens=2, **ALL)
    assert again.encoder_hidden_states is encoded.hidden_states
    assert again.encoder_attentions is encoded.attentions


def test_without_a_request_there_are_the_scores_of_the_tokens_only() -> None:
    model = PegasusXForConditionalGeneration.from_random(CONFIG)
    output = model.generate([[7, 8]], max_new_tokens=3, return_dict_in_generate=True)
    assert set(output) == {"sequences", "transition_scores", "token_log_probs"}
    output = model.generate([[7, 8]], max_new_tokens=3, num_beams=2, return_dict_in_generate=True)
    total = output.transition_scores.sum(axis=1) / (output.beam_indices >= 0).sum(axis=1)
    np.testing.assert_allclose(total, output.sequences_scores, rtol=1e-5)
    assert isinstance(output[0], np.ndarray)
    with pytest.warns(UserWarning, match="output_scores=True: no effect without return_dict_in_generate=True"):
        assert isinstance(model.generate([[7, 8]], max_new_tokens=3, output_scores=True), np.ndarray)
