"""The checks of the settings that a search is about to use. [spec 12]"""

from collections.abc import Iterable
from typing import Any

from pegasusx_ref.checkpoint.settings import Limits, is_integer
from pegasusx_ref.errors import ConfigError, shown
from pegasusx_ref.generation.config import MAX_LENGTH, OUTPUTS, GenerationConfig, as_list

_ROWS = Limits(1, 1024, "rows of a text that are decoded together")
_NGRAM = Limits(0, MAX_LENGTH, "the largest length")
# The range of every number. [spec 12.1]
LIMITS: dict[str, Limits] = {
    "num_beams": _ROWS,
    "num_return_sequences": _ROWS,
    "no_repeat_ngram_size": _NGRAM,
    "encoder_no_repeat_ngram_size": _NGRAM,
    "repetition_penalty": Limits(1e-30, 1e30, "logits times it stay in float32"),
}
SAMPLING_LIMITS: dict[str, Limits] = {
    "temperature": Limits(1e-30, 1e30, "logits divided by it stay in float32; for the best token, do_sample=False"),
    "top_k": Limits(0, 2**24, "the largest vocabulary; 0 for all tokens"),
    "top_p": Limits(0.0, 1.0, "a probability; 1 for all tokens"),
}
BEAM_LIMITS: dict[str, Limits] = {
    "length_penalty": Limits(-6.0, 6.0, "the largest length to this power stays in float32"),
}
OPTIONAL_LIMITS: dict[str, Limits] = {
    "max_time": Limits(0.0, 1e9, "seconds"),
}
DECAY_LIMITS = (Limits(0, MAX_LENGTH, "the largest length"), Limits(1e-30, 1e30, "scores times it stay in float32"))
MAX_STRINGS, MAX_STRING = 1024, 4096  # stop strings, and characters of one


def check_settings(config: GenerationConfig, vocab_size: int) -> None:
    """Check every setting that the search uses, except the length limits, which `lengths` checks.

    Args:
        config: the settings.
        vocab_size: V of the model.

    Raises:
        ConfigError: an invalid setting, with the limit and the remedy.
    """
    for name in ("do_sample", "renormalize_logits", *OUTPUTS):
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"generation: {name}={shown(getattr(config, name))} must be true or false")
    _check_tokens(config, vocab_size)
    used = dict(LIMITS)
    if config.do_sample:
        used |= SAMPLING_LIMITS
    used |= {name: limits for name, limits in OPTIONAL_LIMITS.items() if getattr(config, name) is not None}
    for name, limits in used.items():
        limits.check(f"generation: {name}", getattr(config, name))
    if config.num_beams > 1:
        _check_beams(config)
    most = config.num_beams if config.num_beams > 1 or not config.do_sample else config.num_return_sequences
    if config.num_return_sequences > most:
        raise ConfigError(
            f"generation: num_return_sequences={config.num_return_sequences} is more than num_beams={most}: "
            "raise num_beams, or sample with num_beams=1"
        )
    if (decay := config.exponential_decay_length_penalty) is not None:
        if not isinstance(decay, list) or len(decay) != len(DECAY_LIMITS):
            raise ConfigError(f"generation: exponential_decay_length_penalty={shown(decay)} must be [start, factor]")
        for part, limits, value in zip(("start", "factor"), DECAY_LIMITS, decay, strict=True):
            limits.check(f"generation: exponential_decay_length_penalty: {part}", value)
    strings = as_list(config.stop_strings)
    if len(strings) > MAX_STRINGS or not all(isinstance(s, str) and 0 < len(s) <= MAX_STRING for s in strings):
        raise ConfigError(
            f"generation: stop_strings={shown(config.stop_strings)} must be a text or a list of at most "
            f"{MAX_STRINGS:,}, of 1 to {MAX_STRING:,} characters each"
        )


def _check_tokens(config: GenerationConfig, vocab_size: int) -> None:
    if config.decoder_start_token_id is None and config.bos_token_id is None:
        raise ConfigError("generation: decoder_start_token_id=None: set it or bos_token_id to the first token")
    start = "bos_token_id" if config.decoder_start_token_id is None else "decoder_start_token_id"
    for name in (start, "pad_token_id", "forced_bos_token_id"):
        value = getattr(config, name)
        _check_ids(name, value, [] if value is None else [value], vocab_size)
    for name in ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        _check_ids(name, getattr(config, name), as_list(getattr(config, name)), vocab_size)
    words = as_list(config.bad_words_ids)
    if not all(isinstance(word, list) and word for word in words):
        raise ConfigError(f"generation: bad_words_ids={shown(words)} must be a list of lists of token ids")
    _check_ids("bad_words_ids", words, (token for word in words for token in word), vocab_size)
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = as_list(getattr(config, name))
        if forced and set(forced) <= set(as_list(config.suppress_tokens)):
            raise ConfigError(f"generation: {name}={shown(forced)} is in suppress_tokens: remove it from one of them")


def _check_ids(name: str, value: Any, ids: Iterable[Any], vocab_size: int) -> None:
    if not all(is_integer(i) and 0 <= i < vocab_size for i in ids):
        raise ConfigError(f"generation: {name}={shown(value)} must be a token id in [0, vocab_size={vocab_size})")


def _check_beams(config: GenerationConfig) -> None:
    for name, limits in BEAM_LIMITS.items():
        limits.check(f"generation: {name}", getattr(config, name))
    if not isinstance(config.early_stopping, bool | str) or config.early_stopping not in (True, False, "never"):
        raise ConfigError(f"generation: early_stopping={shown(config.early_stopping)}: choose True, False or 'never'")
