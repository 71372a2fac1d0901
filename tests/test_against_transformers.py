"""The whole model against transformers, the independent reference: every output, random configurations."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hf_reference import hf_reference, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import batches, configs, seeds
from tolerances import FLOAT32, FLOAT64, UNIT_ROUNDOFF_FLOAT32, assert_close

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, PegasusXModel, listen
from pegasusx_ref.model.encoder import is_staggered
from pegasusx_ref.verification import to_transformers_attentions

many = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.slow
@many
@given(st.data())
def test_every_output_equals_transformers_in_float64(transformers: ModuleType, data: st.DataObject) -> None:
    config = data.draw(configs())
    batch = data.draw(batches(config))
    model = PegasusXForConditionalGeneration.from_random(config, data.draw(seeds), dtype="float64")
    hf_model = hf_reference(transformers, model)
    B, T = batch.input_ids.shape
    labels = np.roll(batch.decoder_input_ids, 1, axis=1)
    labels[0, 1:] = -100
    optional: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}

    ours = model(**batch._asdict(), labels=labels, **optional)
    theirs = run(hf_model, **batch._asdict(), labels=labels, **optional)

    assert ours.encoder_hidden_states is not None
    assert ours.encoder_attentions is not None
    for i, (a, b) in enumerate(zip(ours.encoder_hidden_states[:-1], theirs.encoder_hidden_states[:-1], strict=True)):
        assert_close(f"encoder_hidden_states[{i}]", a, b[:, :T], FLOAT64)
    encoded, global_states = theirs.encoder_hidden_states[-1]
    assert_close("encoder_last_hidden_state", ours.encoder_last_hidden_state, encoded, FLOAT64)
    globals_ = model.encode(batch.input_ids, batch.attention_mask).global_hidden_state
    assert_close("global_hidden_state", globals_, global_states, FLOAT64)

    for name in ("decoder_hidden_states", "decoder_attentions", "cross_attentions"):
        if not config.decoder_layers:
            continue  # transformers gives None
        for i, (a, b) in enumerate(zip(getattr(ours, name), getattr(theirs, name), strict=True)):
            assert_close(f"{name}[{i}]", a, b, FLOAT64)
    assert_close("logits", ours.logits, theirs.logits, FLOAT64)
    assert_close("loss", ours.loss, theirs.loss, FLOAT64)

    for i, attentions in enumerate(ours.encoder_attentions):
        staggered = is_staggered(config, i)
        padded = to_transformers_attentions(attentions, config.block_size, staggered)
        their = {kind: tensor.numpy() for kind, tensor in theirs.encoder_attentions[i].items()}
        assert_close(f"encoder_attentions[{i}]['global']", padded["global"], their["global"], FLOAT64)
        # Only rows of tokens: in transformers a padding query holds ordinary attention that nothing reads.
        start = config.block_size // 2 if staggered else 0
        a, b = (
            x["local"].reshape(B, config.encoder_attention_heads, -1, x["local"].shape[-1])[:, :, start : start + T]
            for x in (padded, their)
        )
        assert_close(f"encoder_attentions[{i}]['local']", a, b, FLOAT64)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish"])
@pytest.mark.parametrize("T", [1, 5, 8, 16, 37], ids=lambda T: f"T{T}")
def test_every_activation_and_awkward_length(transformers: ModuleType, activation: str, T: int) -> None:
    config = PegasusXConfig.preset("tiny", activation_function=activation, encoder_layers=3)
    model = PegasusXForConditionalGeneration.from_random(config, seed=T, dtype="float64")
    rng = np.random.default_rng(T)
    ids, target = rng.integers(0, 256, (2, T)), rng.integers(0, 256, (2, 4))
    theirs = run(hf_reference(transformers, model), input_ids=ids, decoder_input_ids=target)
    assert_close("logits", model(ids, decoder_input_ids=target).logits, theirs.logits, FLOAT64)


@pytest.mark.slow
@settings(many, max_examples=30)
@given(st.data())
def test_embeddings_instead_of_ids_target_masks_and_caches(transformers: ModuleType, data: st.DataObject) -> None:
    config = data.draw(configs(decoder_layers=2))  # of 0 layers transformers' cache forgets the length
    batch = data.draw(batches(config))
    model = PegasusXForConditionalGeneration.from_random(config, data.draw(seeds), dtype="float64")
    hf_model = hf_reference(transformers, model)
    B, L = batch.decoder_input_ids.shape
    rng = np.random.default_rng(data.draw(seeds))
    embeds = rng.standard_normal((*batch.input_ids.shape, config.d_model))
    target_mask = (rng.random((B, L)) < 0.7).astype(np.int64)
    target_mask[:, 0] = 1  # a position that sees no token at all is no position of a text

    arrays: dict[str, Any] = {
        "inputs_embeds": embeds,
        "attention_mask": batch.attention_mask,
        "decoder_attention_mask": target_mask,
    }
    ours = model(**arrays, decoder_input_ids=batch.decoder_input_ids)
    theirs = run(hf_model, **arrays, decoder_input_ids=batch.decoder_input_ids)
    assert_close("logits", ours.logits, theirs.logits, FLOAT64)

    next_ids = rng.integers(0, config.vocab_size, (B, 2))
    longer_mask = np.concatenate([target_mask, np.ones((B, 2), dtype=np.int64)], axis=1)
    arrays["decoder_attention_mask"] = longer_mask
    ours_next = model(**arrays, decoder_input_ids=next_ids, past_key_values=ours.past_key_values)
    theirs_next = run(hf_model, **arrays, decoder_input_ids=next_ids, past_key_values=theirs.past_key_values)
    assert_close("resumed logits", ours_next.logits, theirs_next.logits, FLOAT64)


def test_the_model_without_a_head_equals_transformers(transformers: ModuleType) -> None:
    config = PegasusXConfig.preset("tiny")
    model = PegasusXForConditionalGeneration.from_random(config, dtype="float64")
    headless = PegasusXModel(config, model.state_dict(), model.ops)
    rng = np.random.default_rng(0)
    ids, target = rng.integers(0, 256, (2, 19)), rng.integers(0, 256, (2, 4))
    theirs = run(hf_reference(transformers, model).model, input_ids=ids, decoder_input_ids=target)
    ours = headless(ids, decoder_input_ids=target)
    assert_close("last_hidden_state", ours.last_hidden_state, theirs.last_hidden_state, FLOAT64)
    assert ours.past_key_values is not None


def test_float32_positions_of_transformers_err_by_at_most_3_u_p(transformers: ModuleType) -> None:
    import torch
    from transformers.models.pegasus_x.modeling_pegasus_x import PegasusXSinusoidalPositionalEmbedding

    from pegasusx_ref.golden.embedding import sinusoidal_positions

    T, D = 16384, 128
    theirs = PegasusXSinusoidalPositionalEmbedding(D)(torch.empty((1, T, D), dtype=torch.float32))[0].double().numpy()
    error = np.abs(theirs - sinusoidal_positions(0, T, D)).max(axis=1)
    u = UNIT_ROUNDOFF_FLOAT32
    assert (error <= 3 * u * np.arange(T) + 2 * u).all()
    assert error.max() > 1e-4  # which is why positions are computed in float64 here


@settings(many, max_examples=25)
@given(st.data())
def test_float32_equals_transformers_but_for_its_positions(transformers: ModuleType, data: st.DataObject) -> None:
    """Start our model from transformers' float32 embeddings, inexact positions and all: what is left is rounding."""
    config = data.draw(configs(layer_norm_eps=1e-5))
    config = config.replace(encoder_layers=max(1, config.encoder_layers), decoder_layers=max(1, config.decoder_layers))
    batch = data.draw(batches(config))
    seed = data.draw(seeds)
    golden, single = (
        PegasusXForConditionalGeneration.from_random(config, seed, dtype=d) for d in ("float64", "float32")
    )
    theirs = run(hf_reference(transformers, golden).float(), **batch._asdict(), output_hidden_states=True)
    T = batch.input_ids.shape[1]
    embeddings = {
        "encoder.embeddings": theirs.encoder_hidden_states[0][:, :T].numpy(),
        "decoder.embeddings": theirs.decoder_hidden_states[0].numpy(),
    }
    with listen(lambda name, value: embeddings[name].astype(value.dtype), *embeddings):
        exact = golden(**batch._asdict()).logits
        ours = single(**batch._asdict()).logits
    assert_close("transformers' float32 logits", theirs.logits, exact, FLOAT32)
    assert_close("our float32 logits", ours, exact, FLOAT32)
