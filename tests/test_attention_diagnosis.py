"""Bugs of attention are diagnosed with all its tensors shown, and from the output projection alone."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model

from pegasusx_ref import PegasusXConfig
from pegasusx_ref.golden.attention import attention, merge_heads, softmax, split_heads
from pegasusx_ref.golden.global_local import prepend_globals
from pegasusx_ref.tracing import scope
from pegasusx_ref.verification import from_backend, verify
from pegasusx_ref.verification.checking.masked_scores import MASKED
from pegasusx_ref.verification.diagnosis.block_bugs import LAYOUT

pytestmark = [pytest.mark.slow, pytest.mark.unwatched]

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2, encoder_layers=2, decoder_layers=1)
_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (3, 29)),
    "attention_mask": np.arange(29) < np.array([[29], [17], [11]]),
    "decoder_input_ids": _rng.integers(106, 256, (3, 9)),
    "decoder_attention_mask": np.arange(9) >= np.array([[0], [4], [2]]),
}
INSIDE = ("scores", "probs", "context")
SELF, CROSS, LOCAL = "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn", "encoder.layers.0.self_attn"


def right_tensors() -> dict[str, np.ndarray]:
    return dict(from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS))


def found(tensors: Mapping[str, np.ndarray], is_shown: bool) -> tuple[str, str | None]:
    """Return the first wrong tensor and its diagnosis."""
    if not is_shown:
        tensors = {name: x for name, x in tensors.items() if not name.endswith(INSIDE)}
    report = verify(random_model(CONFIG, 0), tensors, INPUTS, "float32")
    assert report.first_failure is not None
    return report.first_failure.name, report.diagnoses[0].mistake if report.diagnoses else None


def with_attention(place: str, change: Callable[..., dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Compute an attention of the decoder again, with a bug."""
    tensors = right_tensors()
    q, k, v = (split_heads(tensors[f"{place}.{part}_proj"].astype(np.float64), 4) for part in "qkv")
    wrong = {f"{place}.{step}": x for step, x in change(q, k, v).items()}
    weight = random_model(CONFIG, 0).state_dict()[f"{place}.out_proj.weight"]
    wrong[f"{place}.out_proj"] = merge_heads(wrong[f"{place}.context"]) @ weight.T
    return tensors | {name: x.astype(np.float32) for name, x in wrong.items()}


def masked_with(mask: np.ndarray) -> Callable[..., dict[str, np.ndarray]]:
    def steps(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
        scores = np.where(mask[:, None], q * 8**-0.5 @ k.swapaxes(2, 3), np.finfo(np.float32).min)
        return {"scores": scores, "probs": softmax(scores), "context": softmax(scores) @ v}

    return steps


CAUSAL, PADDING = np.tri(9, dtype=bool)[None], INPUTS["decoder_attention_mask"][:, None]
MASKS = {
    "the causal mask is missing, the padding mask is right": PADDING & np.ones_like(CAUSAL),
    "the padding mask is missing, the causal mask is right": CAUSAL & np.ones_like(PADDING),
    "the mask is missing": np.ones((3, 9, 9), dtype=bool),
    "the padding mask is that of another batch row": CAUSAL & PADDING[[2, 0, 1]],
    "the causal mask lets each token see the next one": np.tri(9, k=1, dtype=bool)[None] & PADDING,
}


@pytest.mark.parametrize("is_shown", [True, False])
@pytest.mark.parametrize("bug", MASKS)
def test_each_mask_is_diagnosed_on_its_own(bug: str, is_shown: bool) -> None:
    tensors = with_attention(SELF, masked_with(MASKS[bug]))
    assert found(tensors, is_shown) == (f"{SELF}.{'scores' if is_shown else 'out_proj'}", bug)


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_number_is_fitted_only_where_it_leaves_rounding(noise: float) -> None:
    drawn = 1 + noise * np.random.default_rng(1).standard_normal((3, 4, 9, 29))

    def steps(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
        scores = 1.25 * drawn * (q * 8**-0.5 @ k.swapaxes(2, 3))
        scores = np.where(INPUTS["attention_mask"][:, None, None], scores, np.finfo(np.float32).min)
        return {"scores": scores, "probs": softmax(scores), "context": softmax(scores) @ v}

    expected = None if noise else "scores are 1.25 times what they should be"
    assert found(with_attention(CROSS, steps), True) == (f"{CROSS}.scores", expected)
    assert found(with_attention(CROSS, steps), False) == (f"{CROSS}.out_proj", expected)


def test_keys_in_another_order_are_a_layout() -> None:
    tensors = right_tensors()
    for name in [name for name in tensors if name.startswith(LOCAL) and name.endswith(("scores", "probs"))]:
        tensors[name] = np.roll(tensors[name], -4, axis=-1)
    report = verify(random_model(CONFIG, 0), tensors, INPUTS, "float32")
    found = {finding.first.operation: [d.mistake for d in finding.diagnoses] for finding in report.findings}
    assert found == {"scores": [LAYOUT]}  # one finding with the contexts


def test_a_visible_key_that_is_masked_has_a_note() -> None:
    tensors = right_tensors()
    tensors[f"{CROSS}.scores"][0, :, 2, 5] = -np.inf
    report = verify(random_model(CONFIG, 0), tensors, INPUTS, "float32")
    assert report.first_failure is not None
    assert (report.first_failure.name, report.first_failure.note) == (f"{CROSS}.scores", MASKED)


# --- blocks that see other keys -------------------------------------------------------------------------------------


NEIGHBOURS = (
    "tokens see the previous block too",
    "tokens see both neighbouring blocks too",
    "each block sees 1 token after it too",
)


def seen_places(bug: str, start: int, stop: int) -> np.ndarray:
    if "previous" in bug:
        return np.arange(max(start - 8, 0), stop)
    if "neighbouring" in bug:
        return np.arange(max(start - 8, 0), min(stop + 8, 29))
    return np.arange(start, min(stop + 1, 29))


@pytest.mark.parametrize("is_shown", [True, False])
@pytest.mark.parametrize("bug", NEIGHBOURS)
def test_blocks_that_see_more_keys_are_diagnosed(monkeypatch: pytest.MonkeyPatch, bug: str, is_shown: bool) -> None:
    def local(q: Any, k: Any, v: Any, global_k: Any, global_v: Any, mask: Any, blocks: Any, _: Any) -> np.ndarray:
        G, contexts = global_k.shape[2], []
        for n, (start, stop) in enumerate(blocks):
            places = seen_places(bug, start, stop)
            keys, values = (np.concatenate([g, x[:, :, places]], axis=2) for g, x in ((global_k, k), (global_v, v)))
            with scope(f"local.{n}"):
                contexts.append(attention(q[:, :, start:stop], keys, values, prepend_globals(mask[:, places], G)))
        return np.concatenate(contexts, axis=2)

    with monkeypatch.context() as patch:
        patch.setattr("pegasusx_ref.golden.global_local.local_attention", local)
        tensors = right_tensors()
    place = f"{LOCAL}.{'local.0.scores' if is_shown else 'tokens.out_proj'}"
    if is_shown and "previous" in bug:
        place = f"{LOCAL}.local.1.scores"
    assert found(tensors, is_shown) == (place, bug)
