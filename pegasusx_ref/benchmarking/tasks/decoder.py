"""Decoding over given encoder states: the time of a token, of a whole step of the search over all beams."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pegasusx_ref.benchmarking.cases import THEIRS, Case
from pegasusx_ref.benchmarking.models import our_model, their_libraries, their_model
from pegasusx_ref.benchmarking.timing import Clock, waiter
from pegasusx_ref.benchmarking.work import NEW_TOKENS
from pegasusx_ref.tracing import listen

Writer = Callable[[np.ndarray, Clock], Any]


def decoder_task(case: Case, implementation: str, device: str) -> Callable[[int], float]:
    """Make a decoder ready; see `task_of`."""
    write = writer_of(case, implementation, device)
    wait = waiter(implementation, device)

    def seconds_a_token(tokens: int) -> float:
        clock = Clock(wait)
        write(encoder_states(case, tokens), clock)
        return clock.per_token()

    return seconds_a_token


def encoder_states(case: Case, tokens: int) -> np.ndarray:
    """Draw what an encoder might have given (1, T, D), float32, the same each time."""
    shape = (1, tokens, case.config.d_model)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def writer_of(case: Case, implementation: str, device: str) -> Writer:
    """Make a search.

    Returns:
        A function of encoder states (1, T, D) and a clock, which it tells of every step's logits. It gives ids (1, L).
    """
    settings: dict[str, Any] = {
        "num_beams": case.beams,
        "do_sample": False,
        "min_new_tokens": NEW_TOKENS,
        "max_new_tokens": NEW_TOKENS,
    }
    if implementation == THEIRS:
        return their_writer(case, device, settings)
    model = our_model(case, implementation, device)

    def write(states: np.ndarray, clock: Clock) -> Any:
        with listen(lambda *_: clock.tick(), "lm_head"):
            return model.generate(encoder_outputs=(states,), **settings)

    return write


def their_writer(case: Case, device: str, settings: dict[str, Any]) -> Writer:
    """Make transformers' search, which tells its score processors of every step."""
    torch, transformers = their_libraries()
    from transformers.modeling_outputs import BaseModelOutput

    model = their_model(case, device)

    def write(states: np.ndarray, clock: Clock) -> Any:
        def note_time(_: Any, scores: Any) -> Any:
            clock.tick()
            return scores

        # A new object each time: the search repeats the states for its beams in place.
        encoded = BaseModelOutput(last_hidden_state=torch.from_numpy(states).to(device, getattr(torch, case.dtype)))
        processors = transformers.LogitsProcessorList([note_time])
        with torch.inference_mode():
            return model.generate(encoder_outputs=encoded, logits_processor=processors, **settings)

    return write
