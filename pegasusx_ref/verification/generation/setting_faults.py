"""Settings with which a candidate's search may have run instead of the given ones. [spec 16]"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.errors import shown
from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.verification.generation.guided_search import ChangeScores
from pegasusx_ref.verification.generation.length_rules import length_rules

# The values without effect of the settings that change scores; common values of settings.
NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
}
COMMON: dict[str, tuple[Any, ...]] = {
    "no_repeat_ngram_size": (2, 3, 4, 1, 5),
    "repetition_penalty": (1.1, 1.2, 1.3, 1.5, 2.0, 0.8, 0.9, 1.05),
    "length_penalty": (1.0, 0.6, 0.8, 2.0, 0.0, -1.0, 0.5, 0.7, 0.9, 1.2, 1.5),
    "renormalize_logits": (True, False),
    "encoder_no_repeat_ngram_size": (2, 3, 4, 1, 5),
}
BEAMS = (*range(1, 9), 10, 12, 16)
TEMPERATURES = (0.5, 0.7, 0.8, 0.9, 1.2, 1.5, 2.0)


class Hypothesis(NamedTuple):
    """What a candidate may have done instead.

    Attributes:
        setting: the setting, or what else is wrong.
        reason: in words.
        config: its settings.
        change: changes the logits before the processors.
        processor: runs after the processors.
    """

    setting: str
    reason: str
    config: GenerationConfig
    change: ChangeScores | None = None
    processor: ChangeScores | None = None


def setting_faults(
    config: GenerationConfig, first_tokens: set[int], start: int | None, source_length: int
) -> Iterator[Hypothesis]:
    """List settings that are not applied, or applied otherwise, the more common mistakes first.

    Args:
        config: the given settings.
        first_tokens: of the candidate's texts.
        start: the start token that they begin with, or None.
        source_length: T.
    """
    for name, neutral in NEUTRAL.items():
        if (given := getattr(config, name)) != neutral and given is not None:
            yield Hypothesis(name, f"{name}={shown(given)} is not applied", replace(config, **{name: neutral}))
    yield from lengths(config)
    if config.num_beams > 1:
        yield from length_rules(config, source_length, Hypothesis)
        for rule in (True, False, "never"):
            if rule != config.early_stopping:
                yield other_value(config, "early_stopping", rule)
        for beams in sorted(BEAMS, key=lambda beams: (beams > 1, abs(beams - config.num_beams))):
            if config.num_return_sequences <= beams != config.num_beams:
                yield other_value(config, "num_beams", beams)
    for token in config.eos_token_ids:
        rest = [other for other in config.eos_token_ids if other != token] or None
        reason = f"{token} of eos_token_id={shown(config.eos_token_id)} does not end a text"
        yield Hypothesis("eos_token_id", reason, replace(config, eos_token_id=rest))
    for begin in dict.fromkeys((start, config.bos_token_id, *config.eos_token_ids, config.pad_token_id, 0, 2)):
        if begin is not None and begin != config.start_token_id:
            yield other_value(config, "decoder_start_token_id", begin)
    if not config.forced_eos_token_ids and config.eos_token_ids:
        yield other_value(config, "forced_eos_token_id", config.eos_token_ids[0])
    if len(first_tokens) == 1 and config.forced_bos_token_id not in first_tokens:
        yield other_value(config, "forced_bos_token_id", next(iter(first_tokens)))
    yield from score_faults(config)


def other_values(config: GenerationConfig) -> Iterator[Hypothesis]:
    """List other values of settings, those that people use."""
    for name, values in COMMON.items():
        given = getattr(config, name)
        if config.num_beams == 1 and name in ("length_penalty", "renormalize_logits"):
            continue
        yield from (other_value(config, name, value) for value in values if value != given)
    if config.num_beams == 1:
        yield from (other_value(config, "num_beams", beams) for beams in BEAMS[1:])
    if config.pad_token_id is not None:
        yield other_value(config, "suppress_tokens", [config.pad_token_id])
    if config.num_beams > 1 and config.temperature == 1:
        yield from map(partial(tempered, config), TEMPERATURES)


def other_value(config: GenerationConfig, name: str, value: Any) -> Hypothesis:
    """Replace a setting."""
    given = getattr(config, name)
    reason = f"{name}={shown(value)}" + ("" if given is None else f" instead of {shown(given)}")
    return Hypothesis(name, reason, replace(config, **{name: value}))


def tempered(config: GenerationConfig, temperature: float) -> Hypothesis:
    """Divide the logits by a temperature, which changes a beam search."""

    def change(_: np.ndarray, logits: np.ndarray) -> np.ndarray:
        return logits / np.float32(temperature)

    return Hypothesis("temperature", f"temperature={shown(temperature)} is applied without sampling", config, change)


def lengths(config: GenerationConfig) -> Iterator[Hypothesis]:
    """List other length limits: those that count the start token otherwise, and no minimum."""
    shortest, longest = config.lengths()
    for name, limit in (("max", longest), ("min", shortest)):
        used = f"{name}_length" if getattr(config, f"{name}_new_tokens") is None else f"{name}_new_tokens"
        counted = " (the start token is counted otherwise)"
        changes = [(limit - 1, f"{used} is one too short{counted}"), (limit + 1, f"{used} is one too long{counted}")]
        if name == "min":
            changes = (
                [(0, f"{used}={limit - (used == 'min_new_tokens')} is not applied"), *changes] if shortest > 1 else []
            )
        for value, reason in changes:
            if value > (name == "max") or (name == "min" and value == 0):
                given: dict[str, Any] = {f"{name}_length": value, f"{name}_new_tokens": None}
                yield Hypothesis(used, reason, replace(config, **given))


def score_faults(config: GenerationConfig) -> Iterator[Hypothesis]:
    """List other ways to compute the scores of the given settings."""
    if config.num_beams > 1 and config.temperature != 1:
        yield tempered(config, config.temperature)
    if (penalty := config.repetition_penalty) != 1:
        name, without = "repetition_penalty", replace(config, repetition_penalty=1.0)
        yield Hypothesis(
            name, f"{name} is inverted: {1 / penalty:.3g}", replace(config, repetition_penalty=1 / penalty)
        )

        def penalized(ids: np.ndarray, scores: np.ndarray, kind: str = "") -> np.ndarray:
            rows = ids[:, 1:] if kind == "no start" else ids
            counts_NV = np.stack([np.bincount(row, minlength=scores.shape[1]) for row in rows])
            factor_NV = np.float32(penalty) ** (counts_NV if kind == "counted" else np.minimum(counts_NV, 1))
            changed: np.ndarray = np.where((scores < 0) & (kind != "divided"), scores * factor_NV, scores / factor_NV)
            return changed

        for kind, reason in (
            ("divided", "divides negative scores too"),
            ("no start", "does not count the start token as occurred"),
            ("counted", "is applied once for each occurrence of a token"),
        ):

            def process(ids: np.ndarray, scores: np.ndarray, kind: str = kind) -> np.ndarray:
                return penalized(ids, scores, kind)

            yield Hypothesis(name, f"{name} {reason}", without, processor=process)
        if config.num_beams > 1:
            reason = f"{name} is applied to logits, before the log-softmax"
            yield Hypothesis(name, reason, without, change=penalized)
