"""A streamer receives tokens during generation."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pegasusx_ref import InputError, PegasusTokenizer, PegasusXConfig, PegasusXForConditionalGeneration


class Collect:
    def __init__(self) -> None:
        self.steps: list[np.ndarray] = []
        self.ended = 0

    def put(self, value: np.ndarray) -> None:
        assert not self.ended
        self.steps.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.fixture(scope="module")
def model() -> PegasusXForConditionalGeneration:
    return PegasusXForConditionalGeneration.from_random(PegasusXConfig.preset("tiny", init_std=0.4))


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "seed": 3, "num_return_sequences": 3}], ids=str)
def test_the_steps_are_the_columns_of_the_result(
    model: PegasusXForConditionalGeneration, sampling: dict[str, Any]
) -> None:
    source = np.random.default_rng(0).integers(106, 256, (2, 30))
    settings = {"max_new_tokens": 9, **sampling}
    first = model.generate(source, **settings)
    settings["eos_token_id"] = int(first[0, 4])  # one row ends before the others
    collect = Collect()
    ids = model.generate(source, streamer=collect, **settings)
    assert np.array_equal(np.stack(collect.steps, axis=1), ids)
    assert (ids[0] == 0).sum() > 1
    assert collect.ended == 1


def test_tokens_come_before_the_next_step_is_computed(model: PegasusXForConditionalGeneration) -> None:
    from pegasusx_ref import listen

    events: list[str] = []

    class Note(Collect):
        def put(self, value: np.ndarray) -> None:
            events.append("token")

    with listen(lambda name, value: events.append("logits"), "lm_head"):
        model.generate([[110, 120, 1]], max_new_tokens=3, streamer=Note())
    assert events == ["token", "logits", "token", "logits", "token", "logits", "token"]


def test_the_text_streamer_of_transformers_prints_what_is_written(
    transformers: ModuleType, wordy_folder: Path, prose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = PegasusXForConditionalGeneration.from_pretrained(wordy_folder)
    tokenizer = PegasusTokenizer.from_pretrained(wordy_folder)
    streamer = transformers.TextStreamer(tokenizer, skip_special_tokens=True)
    ids = model.generate(**tokenizer(prose[:500], return_tensors="np"), max_new_tokens=9, streamer=streamer)
    assert capsys.readouterr().out.strip() == tokenizer.decode(ids[0], skip_special_tokens=True).strip() != ""


def test_beams_and_several_sequences_cannot_stream(model: PegasusXForConditionalGeneration) -> None:
    with pytest.raises(InputError, match=r"with 4 beams all of them may still change: pass num_beams=1"):
        model.generate([[110, 1]], num_beams=4, max_new_tokens=2, streamer=Collect())
    with pytest.raises(InputError, match=r"streamer=<built-in function print> needs the methods put\(ids\) and end"):
        model.generate([[110, 1]], max_new_tokens=2, streamer=print)  # type: ignore[arg-type]
