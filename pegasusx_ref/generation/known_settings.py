"""The settings of transformers that have no field in `GenerationConfig`, and which of their values have no effect."""

from difflib import get_close_matches
from typing import Any

from pegasusx_ref.checkpoint.plain import PLAIN
from pegasusx_ref.errors import shown

# Settings that would change the tokens, with the value that has no effect; None has none either.
NEUTRAL: dict[str, Any] = {
    "assistant_confidence_threshold": 0.4,
    "assistant_early_exit": None,
    "assistant_ensemble_weight": None,
    "assistant_lookbehind": 10,
    "constraints": None,
    "diversity_penalty": 0.0,
    "dola_layers": None,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "is_assistant": False,
    "low_memory": False,
    "max_matching_ngram_size": None,
    "min_p": None,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "prompt_lookup_num_tokens": None,
    "remove_invalid_values": False,
    "sequence_bias": None,
    "speculation_type": None,
    "target_lookbehind": 10,
    "token_healing": False,
    "top_h": None,
    "typical_p": 1.0,
    "use_mtp": False,
    "watermarking_config": None,
}
# Settings that change how transformers computes the tokens, or where they come from, but no token.
WITHOUT_EFFECT = {
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size"),
    *("compile_config", "disable_compile", "continuous_batching_config"),
    *("transformers_version", "_from_model_config", "_commit_hash"),
}
# Further arguments of transformers' `generate`, likewise.
NEUTRAL_ARGUMENTS: dict[str, Any] = {
    "synced_gpus": False,
    "assistant_model": None,
    "assistant_tokenizer": None,
    "negative_prompt_ids": None,
    "negative_prompt_attention_mask": None,
    "custom_generate": None,
    "decoder_input_ids": None,
    "decoder_attention_mask": None,
    "past_key_values": None,
    "labels": None,
}
ARGUMENTS_WITHOUT_EFFECT = {"trust_remote_code", "use_model_defaults"}
MAX_UNKNOWN = 20  # entries of a file that are compared with known names


def has_effect(name: str, value: Any) -> bool:
    """Return whether transformers would generate other tokens with this value of a setting that is not supported."""
    if not isinstance(value, (*PLAIN, list, dict)):
        return True
    return value is not None and value not in ([], {}, (NEUTRAL | NEUTRAL_ARGUMENTS)[name])


def unsupported(extra: dict[str, Any]) -> str:
    """List the settings of a file that would change the tokens in transformers, but have no field here.

    Args:
        extra: the entries of the file without a field.
    """
    return ", ".join(f"{n}={shown(v)}" for n, v in extra.items() if n in NEUTRAL and has_effect(n, v))


def misspelled(extra: dict[str, Any], known: set[str]) -> dict[str, str]:
    """Find the unknown settings of a file whose names resemble a known one, with that name.

    Args:
        extra: the entries of the file without a field.
        known: the names with a field.
    """
    unknown = [name for name in extra if not (name in NEUTRAL or name in WITHOUT_EFFECT or len(name) > 50)]
    found = {name: get_close_matches(name, known | NEUTRAL.keys(), 1, cutoff=0.85) for name in unknown[:MAX_UNKNOWN]}
    return {name: names[0] for name, names in found.items() if names}
