"""Golden gradients equal transformers' autograd, and differences of losses in random directions."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model, reference
from hf_reference import eager_hf_reference, to_torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import batches, configs, seeds

from pegasusx_ref import (
    DEMO_CHECKPOINT,
    InputError,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    record,
)
from pegasusx_ref.golden import attention, embedding, feed_forward, global_local, head, normalization
from pegasusx_ref.golden.feed_forward import ACTIVATIONS

_rng = np.random.default_rng(0)


def draw_labels(rng: np.random.Generator, vocab_size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw labels of which some are -100, but not all."""
    labels = rng.integers(0, vocab_size, shape)
    labels[rng.random(shape) < 0.3] = -100
    labels[0, 0] = 0
    return labels


def autograd(
    hf_model: Any, batch: dict[str, Any], labels: np.ndarray, smoothing: float
) -> tuple[float, dict[str, Any]]:
    """Return transformers' loss, by torch's own cross-entropy, and its gradients by our parameter names."""
    import torch

    hf_model.zero_grad()
    output = hf_model(**{name: to_torch(array) for name, array in batch.items()})
    loss = torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), to_torch(labels).flatten(), label_smoothing=smoothing
    )
    loss.backward()
    named = hf_model.named_parameters()
    return loss.item(), {name.removeprefix("model."): p.grad.numpy() for name, p in named if p.grad is not None}


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_gradients_equal_autograd(transformers: ModuleType, data: st.DataObject) -> None:
    config = data.draw(configs())
    model = reference(config, data.draw(seeds), "float64")
    batch = data.draw(batches(config))._asdict()
    mask, (B, L) = batch["attention_mask"], batch["decoder_input_ids"].shape
    assume(mask is None or mask.any(axis=1).all())  # every query sees a key: chapter 19.7 says why
    if data.draw(st.booleans()):
        batch["decoder_attention_mask"] = np.arange(L) < data.draw(st.integers(1, L)) - np.arange(B)[:, None] % L
        batch["decoder_attention_mask"][:, 0] = True
    labels = draw_labels(np.random.default_rng(data.draw(seeds)), config.vocab_size, (B, L))
    smoothing = data.draw(st.sampled_from([0.0, 0.1]))
    loss, gradients = model.loss_and_gradients(**batch, labels=labels, label_smoothing=smoothing)
    expected_loss, expected = autograd(eager_hf_reference(transformers, model, "float64"), batch, labels, smoothing)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert set(expected) <= set(gradients)
    for name, gradient in gradients.items():
        right = expected.get(name, np.zeros_like(gradient))
        scale = max(np.abs(right).max(initial=0), 1e-3)
        assert np.abs(gradient - right).max(initial=0) <= 1e-10 * scale, name


CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(2, 256, (2, 29)),
    "attention_mask": (np.arange(29) < np.array([[29], [17]])).astype(np.int64),
    "decoder_input_ids": _rng.integers(2, 256, (2, 6)),
}
LABELS = _rng.integers(2, 256, (2, 6))


def test_gradients_of_hidden_states_equal_autograd(transformers: ModuleType) -> None:
    model = reference(CONFIG, 0, "float64")
    with record("*.grad") as trace:
        model.loss_and_gradients(**INPUTS, labels=LABELS)
    hf_model = eager_hf_reference(transformers, model, "float64")
    arrays = {name: to_torch(array) for name, array in INPUTS.items()}
    output = hf_model(**arrays, labels=to_torch(LABELS), output_hidden_states=True)
    states = {"encoder.layer_norm": output.encoder_last_hidden_state}
    states |= {f"decoder.layers.{i}.input": output.decoder_hidden_states[i] for i in range(CONFIG.decoder_layers)}
    for state in states.values():
        state.retain_grad()
    output.loss.backward()
    for name, state in states.items():
        np.testing.assert_allclose(trace[f"{name}.grad"], state.grad.numpy(), rtol=1e-9, atol=1e-14)
    assert trace["encoder.layers.0.self_attn.local.1.scores.grad"].shape == (2, 4, 8, 12)


def test_padding_gets_no_gradient_and_every_trace_point_has_one() -> None:
    with record() as trace:
        reference(CONFIG, 0, "float64").loss_and_gradients(**INPUTS, labels=LABELS)
    assert not trace["encoder.layer_norm.grad"][1, 17:].any()
    shapes = {name: x.shape for name, x in trace.items() if not name.endswith(".grad")}
    assert {name: trace[f"{name}.grad"].shape for name in shapes} == shapes


def test_float32_is_near() -> None:
    (loss, gradients), (expected_loss, expected) = (
        random_model(CONFIG, 0, "golden", dtype).loss_and_gradients(**INPUTS, labels=LABELS, label_smoothing=0.1)
        for dtype in ("float32", "float64")
    )
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float32, name
        assert np.abs(gradient - expected[name]).max() <= 1e-4 * np.abs(expected[name]).max(), name


def test_targets_are_made_from_labels_and_a_bias_of_logits_has_a_gradient() -> None:
    model = random_model(CONFIG.replace(extra={"final_logits_bias": True}), 0, "golden", "float64")
    labels = np.where(np.arange(6) < 4, LABELS, -100)
    loss, gradients = model.loss_and_gradients(INPUTS["input_ids"], labels=labels)
    assert loss == pytest.approx(model(INPUTS["input_ids"], labels=labels).loss, rel=1e-12)
    assert gradients["final_logits_bias"].sum() == pytest.approx(0, abs=1e-12)  # probabilities minus one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS + 256}, r"labels\[0, 0\] is \d+: token ids of this model lie in \[0, 256\)"),
        ({"labels": np.full((2, 6), -100)}, "labels are -100 everywhere"),
        ({"labels": None}, "pass labels: none is given"),
        ({"input_ids": None}, "pass input_ids: none is given"),
        ({"labels": LABELS[:, :3]}, r"labels have shape \(2, 3\), but the target has \(2, 6\)"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5: expected a number from 0 to 1"),
        ({"label_smoothing": "much"}, "label_smoothing='much': expected a number from 0 to 1"),
        ({"attention_mask": np.ones((2, 3))}, r"attention_mask has shape \(2, 3\)"),
        ({"input_ids": [[1.5]]}, "input_ids has dtype float64"),
    ],
)
def test_wrong_arguments_are_errors(change: dict[str, Any], message: str) -> None:
    arguments = INPUTS | {"labels": LABELS} | change
    with pytest.raises(InputError, match=message):
        reference(CONFIG, 0, "float64").loss_and_gradients(**arguments)


def test_half_precision_and_quantized_weights_are_errors() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "bfloat16", "backend": "torch"}, "gradients need float32 or float64, not bfloat16"),
        ({"quantization": "nf4"}, "quantized weights have no gradients"),
    ]
    for options, message in cases:
        if options.get("backend") == "torch":
            pytest.importorskip("torch")
        model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, **options)
        with pytest.raises(InputError, match=message):
            model.loss_and_gradients([[1, 2]], labels=[[3]])


# --- golden functions ------------------------------------------------------------------------------------------------

STEP = 1e-6


def check_backward(
    function: Callable[..., np.ndarray],
    backward: Callable[..., tuple[np.ndarray, ...]],
    arrays: list[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Compare gradients with central differences of the function, in a random direction of each argument.

    Args:
        function: of the arrays.
        backward: of gradients of its result and the arrays, to gradients of the arrays.
        arrays: float64.
        rng: draws the gradients of the result, and the directions.
    """
    upstream = rng.standard_normal(function(*arrays).shape)
    for number, gradient in enumerate(backward(upstream, *arrays)):
        direction = rng.standard_normal(arrays[number].shape)
        sides = [
            (function(*(x + step * direction if n == number else x for n, x in enumerate(arrays))) * upstream).sum()
            for step in (STEP, -STEP)
        ]
        assert (gradient * direction).sum() == pytest.approx((sides[0] - sides[1]) / (2 * STEP), rel=1e-6, abs=1e-6)


@given(st.data())
def test_linear_and_layer_norm(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(seeds))
    B, T, D, M = (data.draw(st.integers(1, 5)) for _ in range(4))
    x, weight, bias = rng.standard_normal((B, T, D)), rng.standard_normal((M, D)), rng.standard_normal(M)
    check_backward(
        feed_forward.linear, lambda grad, x, w, _: feed_forward.linear_backward(grad, x, w), [x, weight, bias], rng
    )
    x, scale, shift = rng.standard_normal((B, T, D + 1)), rng.standard_normal(D + 1), rng.standard_normal(D + 1)
    eps = data.draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    check_backward(
        lambda x, w, b: normalization.layer_norm(x, w, b, eps),
        lambda grad, x, w, _: normalization.layer_norm_backward(grad, x, w, eps),
        [x, scale, shift],
        rng,
    )


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name: str) -> None:
    x = _rng.standard_normal((3, 50))
    x[np.abs(x) < 1e-3] = 1.0  # relu has no slope at 0
    check_backward(
        lambda x: feed_forward.activation(x, name),
        lambda grad, x: (feed_forward.activation_backward(grad, x, name),),
        [x],
        _rng,
    )


def test_relu_has_slope_0_at_0() -> None:
    assert feed_forward.activation_backward(np.ones(3), np.array([-1.0, 0.0, 2.0]), "relu").tolist() == [0, 0, 1]


@given(st.data())
def test_attention(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(seeds))
    B, H, L, X, F = (data.draw(st.integers(1, 4)) for _ in range(5))
    arrays = [rng.standard_normal((B, H, n, F)) for n in (L, X, X)]
    visible = None if data.draw(st.booleans()) else rng.random((B, L, X)) < 0.5  # some queries may see no key

    def backward(grad: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        with record("probs") as trace:
            attention.attention(q, k, v, visible)
        return attention.attention_backward(grad, q, k, v, trace["probs"], visible)

    check_backward(lambda q, k, v: attention.attention(q, k, v, visible), backward, arrays, rng)


@given(st.data())
def test_global_local_attention(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(seeds))
    B, H, T, G, F = (data.draw(st.integers(1, n)) for n in (2, 2, 9, 3, 3))
    blocks = global_local.block_bounds(T, 2 * data.draw(st.integers(1, 3)), data.draw(st.booleans()))
    mask = None if data.draw(st.booleans()) else rng.random((B, T)) < 0.7
    arrays = [rng.standard_normal((B, H, n, F)) for n in (T, T, T, G, G, G)]

    def both(*arrays: Any) -> np.ndarray:
        q, k, v, global_q, global_k, global_v = arrays
        found = global_local.global_local_attention(q, k, v, global_q, global_k, global_v, mask, blocks)
        return np.concatenate(found, axis=2)

    def backward(grad: np.ndarray, *arrays: Any) -> tuple[np.ndarray, ...]:
        with record("*probs") as trace:
            both(*arrays)
        local = [trace[f"local.{n}.probs"] for n in range(len(blocks))]
        upstream, attended = (grad[:, :, :T], grad[:, :, T:]), (local, trace["global.probs"])
        q, k, v, global_q, global_k, global_v = arrays
        return global_local.global_local_attention_backward(
            *upstream, q, k, v, global_q, global_k, global_v, *attended, mask, blocks
        )

    check_backward(both, backward, arrays, rng)


@given(st.data())
def test_embedding_and_loss(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(seeds))
    B, T, V, D = (data.draw(st.integers(1, n)) for n in (3, 6, 8, 4))
    ids, table, scale = rng.integers(0, V, (B, T)), rng.standard_normal((V, D)), data.draw(st.sampled_from([1.0, 3.5]))
    check_backward(
        lambda table: embedding.embed_tokens(ids, table, scale),
        lambda grad, _: (embedding.embed_tokens_backward(grad, ids, V, scale),),
        [table],
        rng,
    )
    labels, smoothing = draw_labels(rng, V, (B, T)), data.draw(st.sampled_from([0.0, 0.1, 1.0]))
    check_backward(
        lambda logits: head.cross_entropy(logits, labels, smoothing)[None],
        lambda grad, logits: (grad * head.cross_entropy_backward(logits, labels, smoothing),),
        [rng.standard_normal((B, T, V))],
        rng,
    )
