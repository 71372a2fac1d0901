"""Scopes and taps name every intermediate tensor; listeners see and may replace them."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, configs

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, listen, record
from pegasusx_ref.tracing import Listener, scope, tap, wanted
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general


@settings(max_examples=20)
@given(st.data())
def test_the_public_list_names_every_trace_point_and_its_shape(data: st.DataObject) -> None:
    config = data.draw(configs(encoder_layers=2, decoder_layers=2))
    batch = data.draw(batches(config))
    model = PegasusXForConditionalGeneration.from_random(config)
    with record() as trace:
        model(**batch._asdict())
    assert {general(name) for name in trace} == set(TRACE_POINTS)

    B, T = batch.input_ids.shape
    sizes = {"B": B, "T": T, "L": batch.decoder_input_ids.shape[1], "G": config.num_global_tokens}
    sizes |= {"D": config.d_model, "V": config.vocab_size}
    for name, value in trace.items():
        letters = TRACE_POINTS[general(name)]
        encoder = name.startswith("encoder")
        heads = config.encoder_attention_heads if encoder else config.decoder_attention_heads
        widths = {"H": heads, "F": config.d_model // heads}
        widths["M"] = config.encoder_ffn_dim if encoder else config.decoder_ffn_dim
        expected = [(sizes | widths).get(letter) for letter in letters]
        assert len(letters) == value.ndim, name
        assert all(want in (None, size) for want, size in zip(expected, value.shape, strict=True)), name
    locals_ = [v for name, v in trace.items() if re.search(r"layers\.0\..*local\.\d+\.probs", name)]
    assert sum(v.shape[2] for v in locals_) == T


def test_encoder_outputs_pass_on_what_they_hold() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    ids = np.random.default_rng(0).integers(0, 256, (2, 19))
    encoded = model.encode(ids, output_hidden_states=True, output_attentions=True)
    output = model(encoder_outputs=encoded, decoder_input_ids=ids[:, :3])
    assert output.encoder_hidden_states is encoded.hidden_states
    assert output.encoder_attentions is encoded.attentions


def test_without_a_listener_no_name_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    monkeypatch.setattr(Listener, "wants", lambda self, name: pytest.fail("someone listens"))
    model([[7, 8, 9]], decoder_input_ids=[[0]])
    with record(), pytest.raises(pytest.fail.Exception):
        model.encode([[7, 8, 9]])


def test_values_at_the_trace_points_are_those_of_the_outputs() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    ids = np.random.default_rng(0).integers(0, 256, (2, 19))
    with record("lm_head", "encoder.layer_norm") as trace:
        output = model(ids, decoder_input_ids=ids[:, :3])
    assert list(trace) == ["encoder.layer_norm", "lm_head"]
    assert trace["lm_head"] is output.logits
    assert trace["encoder.layer_norm"] is output.encoder_last_hidden_state


def test_a_replacement_is_used_by_later_operations() -> None:
    model = PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny"))
    rng = np.random.default_rng(0)
    ids, other = rng.integers(0, 256, (2, 1, 19))
    with record("encoder.embeddings") as trace:
        expected = model(other, decoder_input_ids=ids[:, :3]).logits
    with listen(lambda name, value: trace["encoder.embeddings"], "encoder.embeddings"):
        actual = model(ids, decoder_input_ids=ids[:, :3]).logits
    assert (actual == expected).all()


def test_a_listener_that_returns_none_changes_nothing() -> None:
    seen = []
    with listen(lambda name, value: seen.append(value)):
        assert tap("x", 3) == 3
    assert seen == [3]


def test_inner_listeners_see_the_replacements_of_outer_ones() -> None:
    seen = []

    def see(name: str, value: int) -> int:
        seen.append((name, value))
        return value

    with listen(lambda name, value: value + 1), listen(see, "a.b.*"), scope("a.b"):
        assert tap("c", 1) == 2
        assert wanted("c")
    with listen(see, "a.*"):
        assert tap("c", 1) == 1
        assert not wanted("c")
    assert tap("c", 1) == 1
    assert seen == [("a.b.c", 2)]


def test_scopes_and_listeners_end_with_their_blocks_even_by_errors() -> None:
    try:
        with record() as trace, scope("left"):
            raise KeyError
    except KeyError:
        pass
    with record() as later:
        tap("x", 1)
    assert trace == {}
    assert later == {"x": 1}
