"""Every backend, in every dtype it declares, against the golden functions in float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from agreement import check_model, check_operation
from backend_parameters import EVERYTHING, IN_FLOAT64, backend_on_cpu, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, configs, operations, seeds
from tolerances import OPERATIONS, assert_close

from pegasusx_ref import (
    DEMO_CHECKPOINT,
    PegasusTokenizer,
    PegasusXConfig,
    PegasusXForConditionalGeneration,
    SummarizationPipeline,
    pipeline,
    record,
)
from pegasusx_ref.backend import GoldenBackend
from pegasusx_ref.golden.head import log_softmax
from pegasusx_ref.model.loading import load_weights

some = settings(max_examples=30)


@pytest.fixture(autouse=True, scope="module")
def _poison() -> Iterator[None]:
    """Fill uninitialized memory with NaN, so that rows that a backend does not write are detected."""
    with pytest.MonkeyPatch.context() as patch:
        empty = np.empty
        patch.setattr(np, "empty", lambda *args, **kwargs: _with_nan(empty(*args, **kwargs)))
        try:
            import torch
        except ImportError:
            yield
            return
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)  # fills torch.empty and similar functions with NaN
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
        torch.use_deterministic_algorithms(before)


def _with_nan(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        array.fill(np.nan)
    return array


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@some
@given(st.data())
def test_operations_agree(backend: str, dtype: str, name: str, data: st.DataObject) -> None:
    check_operation(backend_on_cpu(backend, dtype), data.draw(operations(name)))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
@some
@given(st.data())
def test_models_agree(backend: str, dtype: str, data: st.DataObject) -> None:
    config = data.draw(configs(layer_norm_eps=1e-5, init_std=0.2))
    check_model(backend_on_cpu(backend, dtype), config, data.draw(seeds), data.draw(batches(config)))


@pytest.mark.parametrize("backend", IN_FLOAT64)
@some
@given(st.data())
def test_every_trace_point_agrees(backend: str, data: st.DataObject) -> None:
    config = data.draw(configs())
    batch, seed = data.draw(batches(config)), data.draw(seeds)
    traces = []
    for name in ("golden", backend):
        model = random_model(config, seed, name)
        with record() as trace:
            model(**batch._asdict())
        traces.append({point: np.asarray(model.ops.to_numpy(tensor)) for point, tensor in trace.items()})
    expected, actual = traces
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("backend", IN_FLOAT64)
@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 4, "length_penalty": 0.8}], ids=str)
@some
@given(st.data())
def test_tokens_agree(backend: str, how: dict[str, Any], data: st.DataObject) -> None:
    config = data.draw(configs(init_std=0.5))
    batch, seed = data.draw(batches(config)), data.draw(seeds)
    settings: dict[str, Any] = {"max_new_tokens": 7, "return_dict_in_generate": True, **how}
    models = [random_model(config, seed, name) for name in ("golden", backend)]
    golden, found = (model.generate(batch.input_ids, batch.attention_mask, **settings) for model in models)
    if how["num_beams"] == 1:
        assert found.sequences.tolist() == golden.sequences.tolist()
        return
    # Beam scores are float32, so rounding decides between texts with nearly equal scores. The golden model scores both.
    for texts in (golden.sequences, found.sequences):
        scores = beam_scores(models[0], batch, texts, 7, how["length_penalty"])
        np.testing.assert_allclose(scores, golden.sequences_scores, rtol=1e-5, atol=1e-5)


def beam_scores(model: Any, batch: Any, texts: np.ndarray, max_new_tokens: int, penalty: float) -> list[float]:
    """Compute the score of beam search: the sum of log-probabilities up to the end, over a power of their number.

    Args:
        model: the golden one.
        batch: the sources.
        texts: ids (B, L), the start token first.
        max_new_tokens: of these the last is forced to be the end token, with log-probability 0.
        penalty: the power.
    """
    log_probs = log_softmax(model(batch.input_ids, batch.attention_mask, decoder_input_ids=texts[:, :-1]).logits)
    scores, end = [], model.config.eos_token_id
    for text, at in zip(texts, log_probs, strict=True):
        written = text[1:].tolist()
        written = written[: written.index(end) + 1] if end in written else written
        chosen = [at[i, token] for i, token in enumerate(written) if i < max_new_tokens - 1]
        scores.append(sum(chosen) / len(written) ** penalty)
    return scores


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "dtype"), EVERYTHING)
def test_the_embedded_checkpoint_gives_the_same_summary_on_every_backend(backend: str, dtype: str) -> None:
    """In half precision too: on this text the best tokens win by a wide margin."""
    text = "This library reads and writes PNG images. It supports alpha channels and interlacing, and is fast."
    config = PegasusXConfig.from_pretrained(DEMO_CHECKPOINT)
    tensors, config = load_weights(DEMO_CHECKPOINT, config, True)
    tokenizer = PegasusTokenizer.from_pretrained(DEMO_CHECKPOINT)
    model = PegasusXForConditionalGeneration(config, tensors, backend_on_cpu(backend, dtype))
    written, expected = (
        summarizer(text, num_beams=2, max_new_tokens=20)
        for summarizer in (SummarizationPipeline(model, tokenizer), pipeline(model=DEMO_CHECKPOINT))
    )
    assert written == expected


def test_every_operation_has_a_strategy_and_a_tolerance() -> None:
    others = {"name", "version", "dtypes", "devices", "asarray", "to_numpy", "empty", "compile", "compiles"}
    others |= {"lay_out", "apply_in_chunks"}  # tested in test_chunking.py
    others |= {"workspace"}  # tested in test_workspace.py
    others |= {"quantized", "for_quantized_model"}  # tested in test_quantized_backends.py
    assert set(OPERATIONS) == {name for name in vars(GoldenBackend) if not name.startswith("_")} - others


def test_uninitialized_memory_is_nan() -> None:
    assert np.isnan(np.empty(3)).all()
    torch = pytest.importorskip("torch")
    assert torch.empty(3).isnan().all()
    assert torch.randn(2, 2).new_empty(5).isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_long_texts_of_several_lengths_agree(backend: str) -> None:
    """There are more blocks than backends compute in one batch."""
    config = PegasusXConfig.preset("tiny", encoder_layers=2)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (3, 171))
    mask = np.arange(171) < np.array([[171], [171], [90]])
    golden, found = (random_model(config, 0, name).encode(ids, mask) for name in ("golden", backend))
    assert_close("tokens", found.last_hidden_state[mask], golden.last_hidden_state[mask], 1e-12)
    assert_close("globals", found.global_hidden_state, golden.global_hidden_state, 1e-12)
