"""The settings of one call of `generate`: the checkpoint's, replaced by the caller's. [spec 12]"""

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from pegasusx_ref.checkpoint.plain import is_same, plain
from pegasusx_ref.errors import ConfigError, shown
from pegasusx_ref.files.reading import as_path
from pegasusx_ref.generation.checks import BEAM_LIMITS, SAMPLING_LIMITS, check_settings
from pegasusx_ref.generation.config import OUTPUTS, GenerationConfig, settings_names
from pegasusx_ref.generation.known_settings import (
    ARGUMENTS_WITHOUT_EFFECT,
    NEUTRAL,
    NEUTRAL_ARGUMENTS,
    WITHOUT_EFFECT,
    has_effect,
    misspelled,
    unsupported,
)

# What a setting needs to have an effect: its names, and whether a configuration has it.
NEEDS: tuple[tuple[str, tuple[str, ...], Callable[[GenerationConfig], bool]], ...] = (
    ("do_sample=True", tuple(SAMPLING_LIMITS), lambda config: config.do_sample),
    ("num_beams above 1", (*BEAM_LIMITS, "early_stopping"), lambda config: config.num_beams > 1),
    ("return_dict_in_generate=True", OUTPUTS[1:], lambda config: config.return_dict_in_generate),
)


def settings_of_call(
    defaults: GenerationConfig, given: Any, arguments: Mapping[str, Any], other_arguments: set[str], vocab_size: int
) -> tuple[GenerationConfig, list[str]]:
    """Merge and check the settings of a call, and list those that have no effect. [spec 12.28]

    Args:
        defaults: the model's own settings.
        given: generation_config of the call, see `as_generation_config`; only settings that were given count.
        arguments: settings that were passed by name; they come first, None counts as missing.
        other_arguments: the names of `generate`'s other arguments, to suggest.
        vocab_size: V of the model.

    Returns:
        The settings, and warnings, one line each.

    Raises:
        ConfigError: an invalid setting, or an argument of transformers that is not supported.
        TypeError: a name that is not a setting.

    Source: HF `GenerationMixin._prepare_generation_config`.
    """
    own = as_generation_config(given)
    passed = _supported(arguments, other_arguments)
    replaced = {name: getattr(own, name) for name in own.given - {"extra"}}
    config = defaults.updated(**replaced | passed, extra=defaults.extra | own.extra)
    check_settings(config, vocab_size)
    lengths, neutral = config.lengths(), GenerationConfig()
    # What a file holds is no warning: published ones hold settings for searches that nobody asked for.
    told = {name for name in passed if not is_same(getattr(config, name), getattr(neutral, name))}
    return config, [*_file_warnings(config), *_length_warnings(config, told, lengths), *_idle(config, told)]


def as_generation_config(given: Any) -> GenerationConfig:
    """Convert the argument generation_config.

    Args:
        given: a `GenerationConfig`, one of transformers, a dictionary of settings, or a checkpoint folder or name; None
            for no settings.

    Raises:
        ConfigError: something else.
    """
    if given is None:
        return GenerationConfig()
    if isinstance(given, GenerationConfig):
        return given
    if isinstance(given, Mapping):
        return GenerationConfig.from_dict(given)
    if isinstance(given, str | os.PathLike):
        return GenerationConfig.from_pretrained(as_path(given))
    try:
        return GenerationConfig.from_dict(given.to_diff_dict())
    except Exception:  # any object
        raise ConfigError(
            f"generation_config={shown(given)}: pass a GenerationConfig, a dictionary, or a checkpoint folder"
        ) from None


def _supported(arguments: Mapping[str, Any], other_arguments: set[str]) -> dict[str, Any]:
    """Return the arguments that are settings; refuse the others, but for those that have no effect here."""
    names, found = settings_names(), {}
    for name, value in arguments.items():
        if name in names:
            found[name] = value
        elif name in NEUTRAL or name in NEUTRAL_ARGUMENTS:
            if has_effect(name, plain(value)):
                raise ConfigError(f"generate() does not support {name}={shown(value)}: leave it out")
        elif name not in WITHOUT_EFFECT | ARGUMENTS_WITHOUT_EFFECT:
            close = get_close_matches(name, names | other_arguments, 1, cutoff=0.8)
            hint = "".join(f"; did you mean {match!r}?" for match in close)
            raise TypeError(f"generate() got an unexpected keyword argument {name!r}{hint}")
    return {name: value for name, value in found.items() if value is not None}


def _file_warnings(config: GenerationConfig) -> list[str]:
    found = []
    if ignored := unsupported(config.extra):
        found.append(f"ignoring unsupported settings of the checkpoint: {ignored}")
    for name, known in misspelled(config.extra, settings_names()).items():
        found.append(f"ignoring the unknown setting {shown(name)} of the checkpoint: did you mean {known!r}?")
    return found


def _length_warnings(config: GenerationConfig, told: set[str], lengths: tuple[int, int]) -> list[str]:
    found, (shortest, longest) = [], lengths
    for name in ("max", "min"):
        total, new = (getattr(config, f"{name}_{kind}") for kind in ("length", "new_tokens"))
        if f"{name}_length" in told and new is not None:
            found.append(
                f"{name}_length={shown(total)} has no effect: {name}_new_tokens={new} comes first; pass "
                f"{name}_new_tokens"
            )
    if config.max_length is None and config.max_new_tokens is None:
        found.append(f"no maximum length is set: at most {longest - 1} tokens are generated; pass max_new_tokens")
    if shortest > longest:
        found.append(
            f"the minimum length of {shortest} tokens exceeds the maximum of {longest} (both count the start token): "
            "the maximum applies"
        )
    return found


def _idle(config: GenerationConfig, told: set[str]) -> list[str]:
    found = []
    for need, names, is_met in NEEDS:
        if not is_met(config) and (idle := [name for name in names if name in told]):
            values = ", ".join(f"{name}={shown(getattr(config, name))}" for name in idle)
            found.append(f"{values}: no effect without {need}")
    return found
