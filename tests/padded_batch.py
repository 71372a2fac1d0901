"""Inputs of two sequences, the second of them padded, which the tests of verification share."""

from typing import Any

import numpy as np

_rng = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "input_ids": _rng.integers(106, 256, (2, 29)),
    "attention_mask": np.arange(29) < np.array([[29], [17]]),
    "decoder_input_ids": _rng.integers(106, 256, (2, 6)),
}
