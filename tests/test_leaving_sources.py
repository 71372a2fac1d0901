"""Sources that are done leave the batch of a search, and nothing else changes."""

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from backend_parameters import IN_FLOAT64, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from pegasusx_ref import DEMO_CHECKPOINT, PegasusXConfig, PegasusXForConditionalGeneration
from pegasusx_ref.errors import NumericsError
from pegasusx_ref.generation.running import RunningModel
from pegasusx_ref.model.decode_step import DynamicDecodeStep
from pegasusx_ref.tracing import listen

pytestmark = pytest.mark.slow
CONFIG = PegasusXConfig(
    vocab_size=12, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=16, decoder_ffn_dim=16, block_size=4, num_global_tokens=2, max_position_embeddings=64, init_std=0.4,
)  # fmt: skip
SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 2, "early_stopping": True, "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0, "no_repeat_ngram_size": 2},
    {"num_beams": 2, "repetition_penalty": 1.5, "min_new_tokens": 3, "forced_eos_token_id": 1},
]


def sources(seed: int, batch_size: int) -> dict[str, Any]:
    """Draw sources of different lengths, so that masks must leave with their sources."""
    rng = np.random.default_rng(seed)
    ids, lengths = rng.integers(2, 12, (batch_size, 9)), rng.integers(1, 10, batch_size)
    mask = (np.arange(9) < lengths[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("backend", IN_FLOAT64)
@settings(max_examples=20)
@given(seeds, st.integers(1, 6), st.sampled_from(SEARCHES), st.sampled_from(["dynamic", "static"]))
def test_the_tokens_are_those_of_a_batch_that_stays(
    backend: str, seed: int, batch_size: int, how: dict[str, Any], cache: str
) -> None:
    """Whoever asks for scores gets those of all rows at every step, so nobody leaves."""
    model = random_model(CONFIG, seed, backend)
    arguments = sources(seed, batch_size) | how | {"max_new_tokens": 12, "cache_implementation": cache}
    with patch.object(RunningModel, "leave") as leave:
        stayed = model.generate(**arguments)
    assert leave.called
    np.testing.assert_array_equal(model.generate(**arguments), stayed)
    recorded = model.generate(**arguments, return_dict_in_generate=True)
    np.testing.assert_array_equal(recorded.sequences, stayed)


def rows_of_each_step(model: PegasusXForConditionalGeneration, **arguments: Any) -> tuple[np.ndarray, list[int]]:
    """Generate, and return the ids with the number of rows that each step computed."""
    rows = []
    step = DynamicDecodeStep.__call__

    def counted(self: DynamicDecodeStep, ids_BL: np.ndarray, visible: Any) -> Any:
        rows.append(ids_BL.size)
        return step(self, ids_BL, visible)

    with patch.object(DynamicDecodeStep, "__call__", counted):
        return model.generate(**arguments), rows


@pytest.mark.parametrize("how", SEARCHES[:3], ids=str)
def test_no_step_computes_many_sources_that_are_done(how: dict[str, Any]) -> None:
    model = PegasusXForConditionalGeneration.from_pretrained(DEMO_CHECKPOINT, "numpy", dtype="float64")
    ids = np.random.default_rng(5).integers(5, 6000, (12, 40))
    beams, each = how.get("num_beams", 1), how.get("num_return_sequences", 1)
    arguments: dict[str, Any] = {"input_ids": ids, "max_new_tokens": 40, "num_beams": beams} | how
    arguments |= {"length_penalty": 0.2 if beams > 1 else None}
    found, rows = rows_of_each_step(model, **arguments)
    alone = [rows_of_each_step(model, **arguments | {"input_ids": source[None]}) for source in ids]
    for i, (text, _) in enumerate(alone):
        expected = np.full((each, found.shape[1]), model.config.eos_token_id if beams > 1 else 0)
        expected[:, : text.shape[1]] = text
        np.testing.assert_array_equal(found[i * each : (i + 1) * each], expected)
    needed = sum(sum(alone_rows) for _, alone_rows in alone)
    assert needed <= sum(rows) <= needed / 0.75 + 3 * beams
    assert sum(rows) < 0.9 * 12 * beams * len(rows)


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}], ids=str)
def test_errors_name_the_rows_of_the_whole_batch(how: dict[str, Any]) -> None:
    """The first two of four texts end, in each beam; later the last one breaks."""
    model, beams = random_model(CONFIG, 0), how.get("num_beams", 1)
    seen: list[int] = []

    def change(name: str, logits_BLV: Any) -> Any:
        seen.append(len(logits_BLV))
        changed = np.full_like(logits_BLV, -5.0)
        changed[:, :, 3] = 5
        if len(seen) <= beams:
            changed[:2, :, 1], changed[:2, :, 2:] = 50, -50
        elif len(seen) == 4:
            changed[-1] = np.nan
        return changed

    with listen(change, "lm_head"), pytest.raises(NumericsError, match=r"token 4 are not finite in rows \[3\] .*of 4"):
        model.generate(**sources(1, 4), max_new_tokens=9, length_penalty=0.1 if how else None, **how)
    assert seen[:4] == [4] * beams + [2] * (4 - beams)


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "seed": 0},
        {"logits_processor": [lambda ids, scores: scores]},
        {"prefix_allowed_tokens_fn": lambda source, ids: list(range(12))},
        {"encoder_no_repeat_ngram_size": 3},
        {"return_dict_in_generate": True, "output_scores": True},
        {"return_dict_in_generate": True, "output_attentions": True},
    ],
    ids=lambda how: next(iter(how)),
)
def test_who_counts_on_the_rows_gets_all_of_them(how: dict[str, Any]) -> None:
    model, arguments = random_model(CONFIG, 8), sources(8, 6) | {"max_new_tokens": 12}
    _, rows = rows_of_each_step(model, **arguments)
    assert min(rows) < 6
    _, rows = rows_of_each_step(model, **arguments | how)
    assert set(rows) == {6}
