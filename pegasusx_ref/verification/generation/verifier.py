"""Verification of generated texts: where a candidate's search differs, and why. [spec 16]"""

from collections.abc import Mapping
from typing import Any

from pegasusx_ref.errors import InputError
from pegasusx_ref.generation import GenerationConfig, settings_of_call
from pegasusx_ref.model import PegasusXForConditionalGeneration
from pegasusx_ref.verification.checking.arithmetics import Arithmetic, get_arithmetic
from pegasusx_ref.verification.generation.differences import first_differences
from pegasusx_ref.verification.generation.explanations import Explainer
from pegasusx_ref.verification.generation.guided_search import Guide, guided_search
from pegasusx_ref.verification.generation.reference import Reference
from pegasusx_ref.verification.generation.report import LOGITS, TIE, Explanation, GenerationReport
from pegasusx_ref.verification.generation.texts import Text, Texts, rows_of, start_of
from pegasusx_ref.verification.generation.tolerance import logit_errors
from pegasusx_ref.verification.verifier import check_reference

OTHERWISE = "the logits, or several causes: verify the decoder on the prefix of the first difference"
NOT_DECIDED = "these texts do not decide it: the logits, or what follows; verify more texts"
# A small change of all scores may explain a few choices by chance, and so may one of many values.
WEAK = {"cache", "attention_mask", "temperature", "num_beams", "decoder_start_token_id"}
MIN_CHOICES, MAX_SETTINGS = 3, 2
INPUTS = ("input_ids", "attention_mask")


def verify_generation(
    reference: PegasusXForConditionalGeneration,
    inputs: Mapping[str, Any],
    candidate_tokens: Any,
    generation_config: Any = None,
    arithmetic: str | Arithmetic = "float32",
    **settings: Any,
) -> GenerationReport:
    """Find the first step at which a candidate's greedy or beam search differs, and why. [spec 16.27]

    Where texts differ, the reference first follows the candidate as far as rounding allows. If it cannot, its search is
    repeated with one setting, processor or part of the cache wrong at a time, until it generates the candidate's texts.

    Args:
        reference: the model, with the candidate's weights.
        inputs: input_ids (B, T) and optionally attention_mask (B, T).
        candidate_tokens: generated ids (B, n), (B R, n) or (B, R, n), R = num_return_sequences, with or without the
            start token; what follows the end token may be missing, padding, or below 0.
        generation_config: see `PegasusXForConditionalGeneration.generate`.
        arithmetic: what the candidate computes in, see `verify`.
        settings: of `generate`, such as num_beams.

    Raises:
        InputError: inputs or ids that the model cannot take, or settings for sampling.
        ConfigError: an invalid setting.
        TypeError: a name that is not a setting.
    """
    check_reference(reference)
    arithmetic = get_arithmetic(arithmetic)
    if not isinstance(inputs, Mapping) or not set(inputs) <= set(INPUTS) or "input_ids" not in inputs:
        raise InputError(f"inputs must be a dictionary of {' and '.join(INPUTS)}: the sources of the texts")
    config, _ = settings_of_call(
        reference.generation_config, generation_config, settings, set(), reference.config.vocab_size
    )
    if config.do_sample:
        raise InputError("do_sample=True draws random numbers of its own: verify greedy or beam search")
    if config.max_time is not None or config.stop_strings:
        raise InputError("max_time and stop_strings are not verified: leave them out")
    exact = Reference(reference, inputs["input_ids"], inputs.get("attention_mask"))
    count = len(exact.source_ids) * config.num_return_sequences
    rows = rows_of(candidate_tokens, count, reference.config.vocab_size)
    ids = guided_search(exact, config, Guide.none(len(exact.source_ids)))
    start = start_of(rows, ids, config)
    ours, theirs = Texts(ids.tolist(), config, config.start_token_id), Texts(rows, config, start)
    report = GenerationReport(True, [], [], arithmetic.name, ids)
    if ours.has_ends and not theirs.has_ends:
        report.notes.append("the candidate's texts have no end token")
    if all(ours.same(theirs)):
        return report
    errors = logit_errors(exact, longest_of_sources(ours, config), arithmetic)
    explainer = Explainer(exact, config, ours, theirs, errors, start)
    report.rows = first_differences(exact, config, ours, theirs, errors)
    if explainer.follows(config):
        reason = "a tie: the scores differ by less than rounding may change them"
        report.explanations = [Explanation(TIE, reason)]
        return report
    report.passed = False
    found = sorted(explainer.explanations(), key=lambda explanation: not explanation.is_exact)
    by_setting: dict[str, Explanation] = {}
    for explanation in found:  # of several values of one setting the first is named
        by_setting.setdefault(explanation.setting, explanation)
    report.explanations = list(by_setting.values())
    is_weak = found and found[0].setting in WEAK and count_choices(exact, config, ours, theirs) < MIN_CHOICES
    if not found or len(by_setting) > MAX_SETTINGS or is_weak:
        report.explanations.insert(0, Explanation(LOGITS, NOT_DECIDED if found else OTHERWISE))
    return report


def count_choices(reference: Reference, config: GenerationConfig, ours: Texts, theirs: Texts) -> int:
    """Count the choices of a candidate that the reference would not make: tokens, with beams texts."""
    wrong = [number for number, is_same in enumerate(ours.same(theirs)) if not is_same]
    if config.num_beams > 1:
        return len(wrong)
    count = 0
    for number in wrong:
        text, source = (config.start_token_id, *theirs.targets[number]), number // config.num_return_sequences
        best = [reference.scores(source, text[:n], config).argmax() for n in range(1, len(text))]
        count += sum(token != other for token, other in zip(text[1:], best, strict=True))
    return count


def longest_of_sources(texts: Texts, config: GenerationConfig) -> list[Text]:
    """Return the longest text of each source, with the start token."""
    R = config.num_return_sequences
    by_source = [texts.texts[i : i + R] for i in range(0, len(texts.texts), R)]
    return [(config.start_token_id, *max(rows, key=len)) for rows in by_source]
