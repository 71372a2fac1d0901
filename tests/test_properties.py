"""Properties of the whole model with any weights: masks, order, causality, caches, batches."""

from typing import Any

import numpy as np
import pytest
from backend_parameters import IN_FLOAT64, backend_on_cpu, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Batch, batches, configs, lengths, masks, seeds
from tolerances import CACHED, FLOAT32, assert_close

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, listen
from pegasusx_ref.golden.global_local import block_bounds

some = settings(max_examples=40)
on_every_backend = pytest.mark.parametrize("backend", IN_FLOAT64)
# Tests that draw many models: the fast subset (-m "not slow") has them on numpy only.
draws_on_every_backend = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(*b.values, id=b.id, marks=[*b.marks, *([] if b.id == "numpy" else [pytest.mark.slow])])
        for b in IN_FLOAT64
    ],
)


def draw_model(data: st.DataObject, backend: str, **fixed: object) -> tuple[PegasusXForConditionalGeneration, Batch]:
    config, seed = data.draw(configs(**fixed)), data.draw(seeds)
    return random_model(config, seed, backend), data.draw(batches(config))


@draws_on_every_backend
@some
@given(st.data())
def test_real_tokens_do_not_depend_on_the_ids_of_padding(backend: str, data: st.DataObject) -> None:
    model, batch = draw_model(data, backend)
    rng = np.random.default_rng(data.draw(seeds))
    mask = rng.random(batch.input_ids.shape) < 0.6
    other = np.where(mask, batch.input_ids, rng.integers(0, model.config.vocab_size, mask.shape))
    first, second = (model.encode(ids, mask) for ids in (batch.input_ids, other))
    assert (first.last_hidden_state[mask] == second.last_hidden_state[mask]).all()  # to the bit: masked keys weigh 0
    a, b = (model(ids, mask, batch.decoder_input_ids).logits for ids in (batch.input_ids, other))
    assert (a == b)[mask.any(axis=1)].all()


@draws_on_every_backend
@some
@given(st.data())
def test_padding_changes_nothing(backend: str, data: st.DataObject) -> None:
    model, batch = draw_model(data, backend)
    B, T = batch.input_ids.shape
    extra = data.draw(st.integers(1, 3 * model.config.block_size))
    ids = np.concatenate([batch.input_ids, np.full((B, extra), 2)], axis=1)
    mask = np.concatenate([np.ones((B, T), dtype=int), np.zeros((B, extra), dtype=int)], axis=1)
    alone, padded = model.encode(batch.input_ids), model.encode(ids, mask)
    assert_close("tokens", padded.last_hidden_state[:, :T], alone.last_hidden_state, CACHED)
    assert_close("globals", padded.global_hidden_state, alone.global_hidden_state, CACHED)


@pytest.mark.slow
@draws_on_every_backend
@some
@given(st.data())
def test_batch_rows_are_independent(backend: str, data: st.DataObject) -> None:
    model, batch = draw_model(data, backend)
    order = np.random.default_rng(data.draw(seeds)).permutation(len(batch.input_ids))
    whole = model(**batch._asdict()).logits
    permuted = model(*(None if x is None else x[order] for x in batch)).logits
    assert_close("permuted", permuted, whole[order], CACHED)
    for i in range(len(order)):
        alone = model(*(None if x is None else x[i : i + 1] for x in batch)).logits
        assert_close(f"text {i} alone", alone, whole[i : i + 1], CACHED)


@draws_on_every_backend
@some
@given(st.data())
def test_the_decoder_is_causal(backend: str, data: st.DataObject) -> None:
    model, batch = draw_model(data, backend)
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


@draws_on_every_backend
@some
@given(st.data())
def test_cached_decoding_equals_uncached(backend: str, data: st.DataObject) -> None:
    model, batch = draw_model(data, backend)
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


@pytest.mark.slow
@draws_on_every_backend
@some
@given(st.data())
def test_a_cache_can_be_continued_twice(backend: str, data: st.DataObject) -> None:
    model, batch = draw_model(data, backend, decoder_layers=2)
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
    """Return the tokens that depend on an input token after each layer; optionally with constant global tokens."""
    rng = np.random.default_rng(0)

    def freeze_globals(name: str, value: Any) -> Any:
        frozen = np.random.default_rng(len(name)).standard_normal(value.shape)
        return value if globals_ else model.ops.asarray(frozen)

    changed = ids.copy()
    changed[0, token] = (changed[0, token] + 1 + rng.integers(200)) % 256
    with listen(freeze_globals, "encoder.layers.*.globals.input"):
        a, b = (model.encode(x, output_hidden_states=True).hidden_states for x in (ids, changed))
    assert a is not None
    assert b is not None
    return [set(np.flatnonzero((x != y).any(axis=(0, 2))).tolist()) for x, y in zip(a[1:], b[1:], strict=True)]


@pytest.mark.slow
@on_every_backend
def test_information_crosses_block_edges_on_staggered_layers_and_through_globals(backend: str) -> None:
    """Layer 0 has blocks of 8 from 0, layer 1 from 4: token 7 reaches its block, then the two staggered blocks."""
    config = PegasusXConfig.preset("tiny", encoder_layers=2, block_size=8)
    model = random_model(config, 0, backend)
    ids = np.random.default_rng(0).integers(0, 256, (1, 30))
    first, second = reached(model, ids, token=7, globals_=False)
    assert first == set(range(8))
    assert second == set(range(12))  # [0, 4) and [4, 12): its own block's tokens lie in both
    first, second = reached(model, ids, token=7, globals_=True)
    assert first == set(range(8))  # global tokens pass information on one layer later
    assert second == set(range(30))

    still = PegasusXForConditionalGeneration(config.replace(stagger_local_blocks=False), model.state_dict(), model.ops)
    assert reached(still, ids, token=7, globals_=False)[1] == set(range(8))


@draws_on_every_backend
@some
@given(st.data())
def test_a_token_attends_to_exactly_the_keys_of_the_index_map(backend: str, data: st.DataObject) -> None:
    """Change one token's key: exactly the rows that may attend to it change."""
    block_size, B = 2 * data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    T = data.draw(lengths(block_size))
    blocks = block_bounds(T, block_size, data.draw(st.booleans()))
    mask = data.draw(masks(B, T))
    key_mask_BT = np.ones((B, T), dtype=bool) if mask is None else mask.astype(bool)
    rng = np.random.default_rng(data.draw(seeds))
    ops = backend_on_cpu(backend, "float64")
    q, k, v = (rng.standard_normal((B, 2, T, 3)) for _ in range(3))
    globals_ = [rng.standard_normal((B, 2, 2, 3)) for _ in range(3)]
    text, token = int(rng.integers(B)), int(rng.integers(T))
    moved = k.copy()
    moved[text, :, token] += 1.0

    def attended(keys: np.ndarray) -> list[np.ndarray]:
        local, global_ = ([ops.asarray(x) for x in xs] for xs in ((q, keys, v), globals_))
        given_mask = None if mask is None else ops.asarray(key_mask_BT)
        attend: Any = ops.global_local_attention
        return [ops.to_numpy(x) for x in attend(*local, *global_, given_mask, blocks)]

    before, after = attended(k), attended(moved)
    tokens, global_rows = ((x != y).any(axis=(1, 3)) for x, y in zip(before, after, strict=True))
    start, stop = next(s for s in blocks if s[0] <= token < s[1])
    expected = np.zeros((B, T), dtype=bool)
    expected[text, start:stop] = key_mask_BT[text, token]
    assert tokens.tolist() == expected.tolist()
    assert global_rows.tolist() == [[b == text and bool(key_mask_BT[text, token])] * 2 for b in range(B)]


@on_every_backend
def test_beams_share_the_cross_attention_keys(backend: str) -> None:
    """The cross-attention keys of a source are computed once for all its beams."""
    config = PegasusXConfig.preset("tiny")
    model = random_model(config, 0, backend)
    shapes: set[tuple[int, ...]] = set()
    points = ("decoder.layers.*.encoder_attn.k_proj", "decoder.layers.*.encoder_attn.v_proj")
    with listen(lambda name, value: shapes.add(tuple(value.shape)), *points):
        model.generate(np.random.default_rng(0).integers(106, 256, (2, 19)), num_beams=5, max_new_tokens=6)
    assert shapes == {(2, 19, config.d_model)}
