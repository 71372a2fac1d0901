"""What must hold of the whole model whatever its weights: masks, order, causality, caches, batches."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Batch, batches, configs, seeds
from tolerances import CACHED, FLOAT32, assert_close

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, listen

some = settings(max_examples=40)


def drawn(data: st.DataObject, **fixed: object) -> tuple[PegasusXForConditionalGeneration, Batch]:
    config = data.draw(configs(**fixed))
    return PegasusXForConditionalGeneration.from_random(config, data.draw(seeds), dtype="float64"), data.draw(
        batches(config)
    )


@some
@given(st.data())
def test_real_tokens_do_not_depend_on_what_padding_holds(data: st.DataObject) -> None:
    model, batch = drawn(data)
    rng = np.random.default_rng(data.draw(seeds))
    mask = rng.random(batch.input_ids.shape) < 0.6
    other = np.where(mask, batch.input_ids, rng.integers(0, model.config.vocab_size, mask.shape))
    first, second = (model.encode(ids, mask) for ids in (batch.input_ids, other))
    assert (first.last_hidden_state[mask] == second.last_hidden_state[mask]).all()  # to the bit: masked keys weigh 0
    a, b = (model(ids, mask, batch.decoder_input_ids).logits for ids in (batch.input_ids, other))
    assert (a == b)[mask.any(axis=1)].all()


@some
@given(st.data())
def test_padding_changes_nothing(data: st.DataObject) -> None:
    model, batch = drawn(data)
    B, T = batch.input_ids.shape
    extra = data.draw(st.integers(1, 3 * model.config.block_size))
    ids = np.concatenate([batch.input_ids, np.full((B, extra), 2)], axis=1)
    mask = np.concatenate([np.ones((B, T), dtype=int), np.zeros((B, extra), dtype=int)], axis=1)
    alone, padded = model.encode(batch.input_ids), model.encode(ids, mask)
    assert_close("tokens", padded.last_hidden_state[:, :T], alone.last_hidden_state, CACHED)
    assert_close("globals", padded.global_hidden_state, alone.global_hidden_state, CACHED)


@some
@given(st.data())
def test_texts_of_a_batch_do_not_meet(data: st.DataObject) -> None:
    model, batch = drawn(data)
    order = np.random.default_rng(data.draw(seeds)).permutation(len(batch.input_ids))
    whole = model(**batch._asdict()).logits
    permuted = model(*(None if x is None else x[order] for x in batch)).logits
    assert_close("permuted", permuted, whole[order], CACHED)
    for i in range(len(order)):
        alone = model(*(None if x is None else x[i : i + 1] for x in batch)).logits
        assert_close(f"text {i} alone", alone, whole[i : i + 1], CACHED)


@some
@given(st.data())
def test_the_decoder_is_causal(data: st.DataObject) -> None:
    model, batch = drawn(data)
    rng = np.random.default_rng(data.draw(seeds))
    L = batch.decoder_input_ids.shape[1]
    position = int(rng.integers(L))
    changed = batch.decoder_input_ids.copy()
    changed[:, position] = (changed[:, position] + 1) % model.config.vocab_size
    before, after = (
        model(batch.input_ids, batch.attention_mask, ids).logits for ids in (batch.decoder_input_ids, changed)
    )
    assert (before[:, :position] == after[:, :position]).all()
    assert (before[:, position] != after[:, position]).any()


@some
@given(st.data())
def test_cached_decoding_equals_uncached(data: st.DataObject) -> None:
    model, batch = drawn(data)
    source = model.encode(batch.input_ids, batch.attention_mask)
    whole = model(encoder_outputs=source, decoder_input_ids=batch.decoder_input_ids).logits
    past, pieces = None, []
    rest = batch.decoder_input_ids
    while rest.shape[1]:
        n = data.draw(st.integers(1, rest.shape[1]))
        output = model(encoder_outputs=source, decoder_input_ids=rest[:, :n], past_key_values=past)
        past, rest = output.past_key_values, rest[:, n:]
        pieces.append(output.logits)
    assert_close("logits", np.concatenate(pieces, axis=1), whole, CACHED)


@some
@given(st.data())
def test_a_cache_can_be_continued_twice(data: st.DataObject) -> None:
    model, batch = drawn(data, decoder_layers=2)
    source = model.encode(batch.input_ids, batch.attention_mask)
    start = model(encoder_outputs=source, decoder_input_ids=batch.decoder_input_ids).past_key_values
    tries = [np.full((len(batch.input_ids), 2), i) for i in (3, 4, 3)]
    first, _, again = (model(encoder_outputs=source, decoder_input_ids=t, past_key_values=start).logits for t in tries)
    assert (first == again).all()


@some
@given(st.data())
def test_float32_stays_close_to_float64(data: st.DataObject) -> None:
    config = data.draw(configs(layer_norm_eps=1e-5))
    batch, seed = data.draw(batches(config)), data.draw(seeds)
    single, double = (
        PegasusXForConditionalGeneration.from_random(config, seed, dtype=d)(**batch._asdict()).logits
        for d in ("float32", "float64")
    )
    assert single.dtype == np.float32
    assert_close("logits", single, double, FLOAT32)


def reached(model: PegasusXForConditionalGeneration, ids: np.ndarray, token: int, globals_: bool) -> list[set[int]]:
    """Which tokens the input token has reached after each layer; optionally with global tokens cut off."""
    rng = np.random.default_rng(0)

    def freeze_globals(name: str, value: np.ndarray) -> np.ndarray:
        return value if globals_ else np.random.default_rng(len(name)).standard_normal(value.shape)

    changed = ids.copy()
    changed[0, token] = (changed[0, token] + 1 + rng.integers(200)) % 256
    with listen(freeze_globals, "encoder.layers.*.globals.input"):
        a, b = (model.encode(x, output_hidden_states=True).hidden_states for x in (ids, changed))
    assert a is not None
    assert b is not None
    return [set(np.flatnonzero((x != y).any(axis=(0, 2))).tolist()) for x, y in zip(a[1:], b[1:], strict=True)]


def test_information_crosses_block_edges_on_staggered_layers_and_through_globals() -> None:
    """Layer 0 has blocks of 8 from 0, layer 1 from 4: token 7 reaches its block, then the two staggered blocks."""
    config = PegasusXConfig.preset("tiny", encoder_layers=2, block_size=8)
    model = PegasusXForConditionalGeneration.from_random(config, dtype="float64")
    ids = np.random.default_rng(0).integers(0, 256, (1, 30))
    first, second = reached(model, ids, token=7, globals_=False)
    assert first == set(range(8))
    assert second == set(range(12))  # [0, 4) and [4, 12): its own block's tokens lie in both
    first, second = reached(model, ids, token=7, globals_=True)
    assert first == set(range(8))  # global tokens pass on what they saw one layer later
    assert second == set(range(30))

    still = PegasusXForConditionalGeneration(config.replace(stagger_local_blocks=False), model.state_dict(), model.ops)
    assert reached(still, ids, token=7, globals_=False)[1] == set(range(8))
