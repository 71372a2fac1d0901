"""Costs derived from shapes are those of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, configs

from pegasusx_ref import PegasusXConfig, PegasusXForConditionalGeneration, record
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.model.weights import parameter_shapes, random_weights
from pegasusx_ref.study.costs import (
    PARTS,
    block_local_attention,
    cache_size,
    cost,
    dense_attention,
    part_costs,
    part_of,
    token_flops,
)
from pegasusx_ref.study.shape_inference import steps, weights_of
from pegasusx_ref.tracing.trace_points import TRACE_POINTS

pytestmark = pytest.mark.slow


class Counter:
    """The FLOPs of matrix products so far."""

    flops = 0


class Counted(np.ndarray):
    """An array that counts the FLOPs of `@` with it or with arrays derived from it."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, Counted) else x for x in inputs]
        if "out" in keywords:
            keywords["out"] = tuple(np.asarray(x) for x in keywords["out"])
        result = getattr(ufunc, method)(*plain, **keywords)
        if ufunc is np.matmul:
            Counter.flops += 2 * result.size * plain[0].shape[-1]
        return result.view(Counted) if isinstance(result, np.ndarray) else result

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        """Results of `where` and `concatenate` count too."""
        result = super().__array_function__(function, types, arguments, keywords)
        return result.view(Counted) if isinstance(result, np.ndarray) else result


class CountingBackend(GoldenBackend):
    def asarray(self, array: np.ndarray) -> np.ndarray:
        converted = super().asarray(array)
        return converted.view(Counted) if converted.dtype.kind == "f" else converted


@contextmanager
def counting() -> Iterator[type[Counter]]:
    Counter.flops = 0
    yield Counter


def counted_model(config: PegasusXConfig) -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration(config, random_weights(config), CountingBackend(None, "float32"))


@settings(max_examples=40)
@given(st.data())
def test_steps_are_those_of_a_run(data: st.DataObject) -> None:
    config = data.draw(configs())
    batch = data.draw(batches(config))
    (B, T), L = batch.input_ids.shape, batch.decoder_input_ids.shape[1]
    with record() as trace:
        PegasusXForConditionalGeneration.from_random(config)(*batch)
    inferred = list(steps(config, T, L, B))
    assert {step.name: step.shape for step in inferred} == {name: value.shape for name, value in trace.items()}
    assert len(inferred) == len(trace)


@settings(max_examples=40)
@given(st.data())
def test_flops_are_those_of_the_matrix_products_that_run(data: st.DataObject) -> None:
    config = data.draw(configs())
    batch = data.draw(batches(config))
    (B, T), L = batch.input_ids.shape, batch.decoder_input_ids.shape[1]
    model = counted_model(config)
    with counting() as counter:
        output = model(*batch)
    assert counter.flops == sum(part.flops for part in part_costs(config, T, L, B)) > 0
    with counting() as counter:
        model(
            encoder_outputs=output.encoder_last_hidden_state,
            attention_mask=batch.attention_mask,
            decoder_input_ids=batch.decoder_input_ids[:, :1],
            past_key_values=output.past_key_values,
        )
    assert counter.flops == token_flops(config, T, past=L, B=B)
    assert output.past_key_values is not None
    layers = output.past_key_values.layers
    caches = [array for c in layers for array in (c.self_k.array, c.self_v.array, c.cross_k_BHTF, c.cross_v_BHTF)]
    assert cache_size(config, T, L, B) == sum(prod(array.shape) for array in caches)


@given(configs())
def test_parameters_are_those_of_the_model(config: PegasusXConfig) -> None:
    model = PegasusXForConditionalGeneration.from_random(config)
    assert sum(part.parameters for part in part_costs(config, 7, 3)) == model.num_parameters()


def test_steps_read_every_weight() -> None:
    config = PegasusXConfig.preset("tiny")
    shapes = parameter_shapes(config)
    read = {weight for step in steps(config, 9, 2) for weight in weights_of(step.name, shapes)}
    assert read == set(shapes)
    where = "encoder.layers.1"
    bias = f"{where}.global_self_attn_layer_norm.bias"
    readers = [step.name for step in steps(config, 9, 2) if bias in weights_of(step.name, shapes)]
    assert readers == [f"{where}.globals.self_attn_layer_norm"]
    members = [step for step in steps(config, 9, 2) if step.name.startswith(f"{where}.self_attn.")]
    assert cost("", config, members).parameters == 4 * 32 * 32


def test_every_trace_point_belongs_to_one_part() -> None:
    from fnmatch import fnmatchcase

    for point in TRACE_POINTS:
        owners = [part for part, patterns in PARTS.items() if any(fnmatchcase(point, p) for p in patterns)]
        assert owners == [part_of(point)]


@settings(max_examples=40)
@given(st.data())
def test_one_block_of_the_whole_text_costs_dense_attention_plus_global_tokens(data: st.DataObject) -> None:
    config = data.draw(configs(encoder_layers=2))
    B, T, G = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), config.num_global_tokens
    wide = config.replace(block_size=20, stagger_local_blocks=False)
    ours, dense = block_local_attention(wide, T, B), dense_attention(wide, T, B)
    H, D = config.encoder_attention_heads, config.d_model
    assert ours.scores == dense.scores + H * (T * G + G * (G + T))
    assert ours.flops == dense.flops + 2 * 4 * B * D * (T * G + G * (G + T))
    assert dense.largest == B * H * T * T


@pytest.mark.parametrize("name", ["base", "large"])
def test_the_published_shapes(name: str) -> None:
    config = PegasusXConfig.preset(name)
    T, K, G, H, F = 16384, 512, 128, config.encoder_attention_heads, 64
    ours, dense = block_local_attention(config, T), dense_attention(config, T)
    assert ours.scores == H * (T * (G + K) + G * (G + T))  # even layers; staggered ones have less
    assert ours.largest == H * G * (G + T) > H * K * (G + K)
    assert dense.flops == config.encoder_layers * 4 * H * F * T * T
    assert 20 < dense.flops / ours.flops < 22
