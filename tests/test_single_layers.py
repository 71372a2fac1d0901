"""Single layers that start from a candidate's tensors: their names, and what enters them."""

from typing import Any

import numpy as np
import pytest
from backend_parameters import random_model, reference
from padded_batch import INPUTS

from pegasusx_ref import InputError, PegasusXConfig
from pegasusx_ref.verification import Report, from_backend, verify
from pegasusx_ref.verification.single_layers import parse_layers

CONFIG = PegasusXConfig.preset("tiny", init_std=0.2)
MODEL = reference(CONFIG, 0, "float32")
TENSORS = {name: x.copy() for name, x in from_backend(random_model(CONFIG, 0, "numpy", "float32"))(INPUTS).items()}
STATE = "encoder.layers.1.tokens.input"


def report_of(changed: dict[str, Any], **options: Any) -> Report:
    return verify(MODEL, TENSORS | changed, INPUTS, "float32", **options)


def test_layers_may_be_one_str() -> None:
    assert parse_layers("encoder.1, decoder.0-1", CONFIG) == parse_layers(["encoder.1", "decoder.0-1"], CONFIG)
    assert parse_layers("encoder.0", CONFIG) == ["encoder.layers.0"]
    with pytest.raises(InputError, match=r"layers: 'encoder.1-0': the range is reversed: write encoder.0-1"):
        parse_layers("encoder.1-0", CONFIG)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (np.ones((2, 3)), rf"layers.1 cannot be checked alone: {STATE} has shape \(2, 3\), expected \(2, 29, 32\)$"),
        (np.ones((2, 28, 32)), rf"{STATE} has shape \(2, 28, 32\), expected"),
        (TENSORS[STATE] * np.nan, rf"layers.1 cannot be checked alone: {STATE} is not finite"),
    ],
    ids=["axes", "rows", "NaN"],
)
def test_what_enters_a_layer_is_checked(state: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        report_of({STATE: state}, layers=["encoder.1"])


def test_padding_that_enters_a_layer_may_be_anything() -> None:
    state = TENSORS[STATE].copy()
    state[1, 17:] = np.nan
    hidden = ("layer_norm", "_proj", "scores", "probs")  # then context is computed from the state
    shown = {name: x for name, x in TENSORS.items() if not name.endswith(hidden)}
    report = verify(MODEL, shown | {STATE: state}, INPUTS, "float32", layers="encoder.1")
    assert report.passed
    assert {check.verdict for check in report.table if check.name.endswith("local.2.context")} == {"pass"}
