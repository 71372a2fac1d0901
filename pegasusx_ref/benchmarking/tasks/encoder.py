"""The encoder over one text; what it gives stays on the device, as the decoder would read it there."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pegasusx_ref.benchmarking.cases import THEIRS, Case
from pegasusx_ref.benchmarking.models import our_model, their_libraries, their_model
from pegasusx_ref.benchmarking.timing import timed, waiter
from pegasusx_ref.model.encoder import encoder
from pegasusx_ref.model.layers import embed


def encoder_task(case: Case, implementation: str, device: str) -> Callable[[int], float]:
    """Make an encoder ready; see `task_of`."""
    encode, wait = encoder_of(case, implementation, device), waiter(implementation, device)

    def seconds(tokens: int) -> float:
        ids = source_ids(case, tokens)
        return timed(lambda: encode(ids), wait)

    return seconds


def source_ids(case: Case, tokens: int) -> np.ndarray:
    """Draw a text of so many tokens (1, T), the same each time."""
    return np.random.default_rng(0).integers(106, case.config.vocab_size, (1, tokens))


def encoder_of(case: Case, implementation: str, device: str) -> Callable[[np.ndarray], Any]:
    """Make an encoder.

    Returns:
        A function of token ids (1, T) that gives hidden states (1, T, D), an array of the implementation's library.
    """
    if implementation == THEIRS:
        torch, _ = their_libraries()
        theirs = their_model(case, device).get_encoder()

        def encode(ids: np.ndarray) -> Any:
            with torch.inference_mode():
                return theirs(input_ids=torch.from_numpy(ids).to(device)).last_hidden_state

        return encode

    model = our_model(case, implementation, device)
    ops, config, weights = model.ops, model.config, model.weights

    def encode_ours(ids: np.ndarray) -> Any:
        x_BTD = embed(ops, weights, config, "encoder", ops.asarray(ids), start=0)
        return encoder(ops, weights.at("encoder"), config, x_BTD, None)[0]

    return encode_ours
