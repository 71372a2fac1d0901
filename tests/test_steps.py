"""Decoding step by step: our own cached decoding passes, and faults of caches are found at their step and named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pegasusx_ref import InputError, PegasusXConfig, PegasusXForConditionalGeneration, record
from pegasusx_ref.model.decoder import decoder_cross_attention
from pegasusx_ref.model.layers import project_heads, project_out
from pegasusx_ref.verification import from_steps, verify
from pegasusx_ref.verification.generation import verify_steps

pytestmark = pytest.mark.unwatched

CONFIG = PegasusXConfig.preset("tiny", decoder_layers=2, init_std=0.3)
EXACT = PegasusXForConditionalGeneration.from_random(CONFIG, 5, dtype="float64")
RNG = np.random.default_rng(5)
INPUTS = {
    "input_ids": RNG.integers(2, CONFIG.vocab_size, (2, 21)),
    "decoder_input_ids": RNG.integers(2, CONFIG.vocab_size, (2, 6)),
}
LAYER = "decoder.layers.1.self_attn"
HIDDEN = (".scores", ".probs", ".context")


class FaultyKV:
    """Keys or values of which a step sees what `seen` returns of those of all steps so far."""

    def __init__(self, full: np.ndarray, seen: Callable[[np.ndarray], np.ndarray]) -> None:
        self.full, self.seen = full, seen

    @property
    def array(self) -> np.ndarray:
        return self.seen(self.full)

    def append(self, ops: Any, new: np.ndarray) -> "FaultyKV":
        return FaultyKV(np.concatenate([self.full, new], axis=2), self.seen)


def with_faulty_source(seen: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Any]:
    """Return a cross-attention whose later steps see what `seen` returns of the keys and values of the source."""

    def attention(ops: Any, weights: Any, config: Any, x: Any, encoded: Any, mask: Any, past: Any) -> Any:
        if past is None:
            return decoder_cross_attention(ops, weights, config, x, encoded, mask, past)
        k, v = past.cross_k_BHTF, past.cross_v_BHTF
        q = project_heads(ops, weights, "q_proj", config.decoder_attention_heads, x)
        context = ops.attention(q, seen(k), seen(v), None if mask is None else mask[:, None])
        return project_out(ops, weights, context), k, v

    return attention


def decoded(
    backend: str = "numpy",
    seen: Callable[[np.ndarray], np.ndarray] | None = None,
    position: Callable[[int], int] = lambda step: step,
    source_seen: Callable[[np.ndarray], np.ndarray] | None = None,
    mask: np.ndarray | None = None,
) -> list[dict[str, np.ndarray]]:
    """Decode the target with a cache; layer 1 sees a faulty one, or all layers a faulty one of the source."""
    model = PegasusXForConditionalGeneration.from_random(CONFIG, 5, backend=backend, dtype="float32")
    past, steps = None, []
    source: dict[str, Any] = {"input_ids": INPUTS["input_ids"]}
    for t in range(INPUTS["decoder_input_ids"].shape[1]):
        with record() as trace:
            ids = INPUTS["decoder_input_ids"][:, t : t + 1]
            if past is not None:
                past = past._replace(length=position(t))
            found = model(**source, attention_mask=mask, decoder_input_ids=ids, past_key_values=past)
        past, source = found.past_key_values, {"encoder_outputs": (found.encoder_last_hidden_state,)}
        assert past is not None
        if seen is not None and t == 0:
            layer = past.layers[1]
            pair: Any = FaultyKV(layer.self_k.array, seen), FaultyKV(layer.self_v.array, seen)
            faulty = layer._replace(self_k=pair[0], self_v=pair[1])
            past = past._replace(layers=(past.layers[0], faulty))
        step = {name: model.ops.to_numpy(tensor) for name, tensor in trace.items()}
        for i, layer in enumerate(past.layers):
            step[f"decoder.layers.{i}.self_attn.cache.k"] = model.ops.to_numpy(layer.self_k.array).copy()
            step[f"decoder.layers.{i}.self_attn.cache.v"] = model.ops.to_numpy(layer.self_v.array).copy()
            for kind, x in ("k", layer.cross_k_BHTF), ("v", layer.cross_v_BHTF):
                rows = model.ops.to_numpy(x)
                step[f"decoder.layers.{i}.encoder_attn.cache.{kind}"] = (
                    rows if source_seen is None else source_seen(rows)
                )
        steps.append(step)
    return steps


def late(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, :, :-1], x[:, :, -2:-1]], axis=2) if x.shape[2] > 1 else x


def one_late(x: np.ndarray) -> np.ndarray:
    return np.concatenate([0 * x[:, :, :1], x[:, :, :-1]], axis=2) if x.shape[2] > 1 else x


def of_the_other_row(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[::-1, :, :-1], x[:, :, -1:]], axis=2)


FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int, str]] = {
    "stale": (lambda x: x[:, :, : max(x.shape[2] - 1, 1)], 1, "the newest row is missing"),
    "repeated": (late, 1, "the row before the newest is repeated"),
    "shifted": (one_late, 1, "rows are one token late, the first is 0"),
    "truncated": (lambda x: x[:, :, -3:], 3, "only the last 3 rows are kept"),
    "not reordered": (of_the_other_row, 1, "not reordered"),
}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_our_own_cached_decoding_passes(backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    steps = decoded(backend)
    result = verify_steps(EXACT, steps, INPUTS)
    assert (result.passed, result.findings, result.report.coverage.missing) == (True, [], [])
    assert verify(EXACT, from_steps(steps), INPUTS).passed


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_cache_is_found_at_its_step(name: str) -> None:
    seen, step, words = FAULTS[name]
    result = verify_steps(EXACT, decoded(seen=seen), INPUTS)
    by_tensor = {finding.tensor: finding for finding in result.findings}
    finding = by_tensor[f"{LAYER}.cache.k"]
    assert (finding.step, words in finding.mistake) == (step, True), finding
    assert not result.passed


@pytest.mark.parametrize("hidden", [(), HIDDEN[:1], HIDDEN[:2], HIDDEN], ids=str)
@pytest.mark.parametrize("name", FAULTS)
def test_a_hidden_cache_is_named_by_what_follows_from_it(name: str, hidden: tuple[str, ...]) -> None:
    seen, step, words = FAULTS[name]
    steps = [
        {
            key: tensor
            for key, tensor in shown.items()
            if ".cache." not in key and not key.endswith(hidden or (".none",))
        }
        for shown in decoded(seen=seen)
    ]
    result = verify_steps(EXACT, steps, INPUTS)
    findings = [finding for finding in result.findings if finding.tensor.startswith(LAYER)]
    assert findings, result
    assert findings[0].step == step
    if name == "shifted" and len(hidden) > 1:  # the order of the rows does not matter to what is left
        words = "the newest row is 0"
    assert words in findings[0].mistake, findings


def early(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[:, :, 1:], 0 * x[:, :, :1]], axis=2)


SOURCE_FAULTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "stale": (np.zeros_like, "stale: its rows are 0"),
    "shifted": (one_late, "shifted: rows are one token late, the first is 0"),
    "shifted back": (early, "shifted: rows are one token early, the last is 0"),
    "truncated": (lambda x: x[:, :, :-3], "truncated: only the first 18 rows are kept"),
    "truncated in front": (lambda x: x[:, :, 3:], "truncated: only the last 18 rows are kept"),
    "another row": (lambda x: x[[2, 0, 1]], "that of the previous batch row"),
}
THREE = {name: np.concatenate([x, x[:1, ::-1]]) for name, x in INPUTS.items()}
MASK = np.arange(21) < np.array([[21], [15], [19]])


@pytest.mark.parametrize(
    ("name", "point", "mask"),
    [
        *((name, point, None) for name in SOURCE_FAULTS for point in ("cache.k", "context", "out_proj")),
        *((name, point, MASK) for name in SOURCE_FAULTS if "trunc" not in name for point in ("scores", "out_proj")),
    ],
)
def test_a_faulty_cache_of_the_source_is_named(
    name: str, point: str, mask: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of its cross-attention a candidate shows: the cache, or the first tensor that follows from it."""
    for key, x in THREE.items():
        monkeypatch.setitem(INPUTS, key, x)
    change, words = SOURCE_FAULTS[name]
    place = "decoder.layers.0.encoder_attn"
    order = ("scores", "probs", "context", "out_proj")
    hidden: tuple[str, ...] = ()
    if point in order:
        hidden = (".cache.k", ".cache.v", *(f"encoder_attn.{other}" for other in order[: order.index(point)]))
    monkeypatch.setattr("pegasusx_ref.model.decoder.decoder_cross_attention", with_faulty_source(change))
    steps = decoded(source_seen=change, mask=mask)
    if "truncated" in name:
        hidden += ("encoder_attn.scores", "encoder_attn.probs")
    steps = [{key: x for key, x in step.items() if not key.endswith(hidden)} for step in steps]
    result = verify_steps(EXACT, steps, INPUTS | ({} if mask is None else {"attention_mask": mask}))
    finding = next(finding for finding in result.findings if finding.tensor.startswith(place))
    expected_step = 0 if point == "cache.k" else 1
    assert (finding.tensor, finding.step) == (f"{place}.{point}", expected_step), result.findings
    if "shifted" in name and point in ("context", "out_proj") and mask is None:
        words = "rows are one token"  # the order of the rows does not matter to what is left
    assert words in finding.mistake, finding


@pytest.mark.parametrize(("position", "words"), [(lambda t: t + 1, "one too late"), (lambda t: 0, "0")])
def test_a_wrong_position_is_found_at_its_step(position: Callable[[int], int], words: str) -> None:
    result = verify_steps(EXACT, decoded(position=position), INPUTS)
    assert (result.findings[0].tensor, result.findings[0].step) == ("decoder.embeddings", 1)
    assert words in result.findings[0].mistake


def test_a_mask_that_is_off_by_one_is_found() -> None:
    def with_a_slot(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, 0 * x[:, :, :1]], axis=2) if x.shape[2] > 1 else x

    steps = decoded(seen=with_a_slot)
    for step in steps:
        del step[f"{LAYER}.cache.k"], step[f"{LAYER}.cache.v"]
    result = verify_steps(EXACT, steps, INPUTS)
    assert (result.findings[0].step, result.findings[0].mistake) == (1, "1 unfilled slots are not masked")


def test_all_forms_of_steps_are_the_same() -> None:
    steps = decoded()
    expected = from_steps(steps)
    prefixed = {f"step.{t}.{name}": tensor for t, step in enumerate(steps) for name, tensor in step.items()}
    for other in (prefixed, lambda t: steps[t]):
        found = from_steps(other, len(steps))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    stacked = {
        name: np.stack([step[name] for step in steps], axis=1)
        for name in expected
        if name.startswith("decoder.")
        and not name.endswith(("self_attn.scores", "self_attn.probs"))
        and "encoder_attn.k" not in name
        and "encoder_attn.v" not in name
    }
    assert all(np.array_equal(tensor, expected[name]) for name, tensor in from_steps(stacked).items())


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3), (9, 4, 3, 8), (2, 4, 0, 8), ()])
@pytest.mark.parametrize("kind", ["self_attn", "encoder_attn"])
def test_a_cache_of_another_shape_is_a_finding(kind: str, shape: tuple[int, ...]) -> None:
    name = f"decoder.layers.1.{kind}.cache.k"
    steps = decoded()
    steps[2][name] = np.ones(shape, dtype=np.float32)
    (finding,) = verify_steps(EXACT, steps, INPUTS).findings
    assert (finding.step, finding.tensor) == (2, name)
    assert f"shape {shape} differs" in finding.mistake


def test_other_tensors_of_steps_are_errors_or_findings() -> None:
    steps = decoded()
    steps[2][f"{LAYER}.cache.k"] = np.array(["a"])
    with pytest.raises(InputError, match="not an array of numbers"):
        verify_steps(EXACT, steps, INPUTS)
    steps = decoded()
    steps[0]["decoder.layers.1.encoder_attn.k_proj"] = np.ones((2, 3), dtype=np.float32)
    assert not verify_steps(EXACT, steps, INPUTS).passed


@pytest.mark.parametrize("source", [[], [1], {"step.99999.lm_head": np.ones(3)}, None, lambda t: {}])
def test_what_is_no_step_is_an_error(source: Any) -> None:
    with pytest.raises(InputError, match="step"):
        from_steps(source)


def test_fewer_keys_than_tokens_are_the_last_ones() -> None:
    steps = [{f"{LAYER}.scores": np.full((1, 1, 1, min(t + 1, 2)), float(t))} for t in range(4)]
    rows = from_steps(steps)[f"{LAYER}.scores"][0, 0]
    assert np.isfinite(rows).tolist() == (np.tri(4) - np.tri(4, k=-2) > 0).tolist()


def test_what_a_step_lacks_is_named_and_unknown_names_are_kept() -> None:
    steps = decoded()
    del steps[2]["decoder.layers.0.fc1"]
    steps[1]["logits"] = np.ones(3)
    with pytest.warns(UserWarning, match=r"^left out, because a step lacks them: decoder.layers.0.fc1 \(step 2\)$"):
        tensors = from_steps(steps)
    report = verify(EXACT, tensors, INPUTS)
    assert report.coverage[1:] == (["decoder.layers.0.fc1"], {"logits": ""})
    with pytest.raises(InputError, match=r"lm_head: the steps have shapes \(\), \(\): pass one row of the same size"):
        from_steps([{"lm_head": 3.0}] * 2)
