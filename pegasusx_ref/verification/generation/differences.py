"""The first difference of each text, with scores and margins. [spec 16]"""

from collections.abc import Sequence

import numpy as np

from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.verification.generation.guided_search import Diverged, Guide, guided_search
from pegasusx_ref.verification.generation.reference import Reference
from pegasusx_ref.verification.generation.report import TextDifference
from pegasusx_ref.verification.generation.texts import Text, Texts


def first_differences(
    reference: Reference, config: GenerationConfig, ours: Texts, theirs: Texts, errors: Sequence[float]
) -> list[TextDifference]:
    """Describe the first difference of each text that differs.

    Args:
        reference: the model and its sources.
        config: the settings.
        ours: the reference's texts.
        theirs: the candidate's.
        errors: of the logits, for each source.
    """
    found = []
    steps = ours.agreements(theirs)
    for number, is_same in enumerate(ours.same(theirs)):
        if is_same:
            continue
        source, step = number // config.num_return_sequences, steps[number]
        prefix = (config.start_token_id, *ours.texts[number][:step])
        scores_V = reference.scores(source, prefix, config)
        our_token, their_token = ours.token(number, step), theirs.token(number, step)
        our_score, their_score = (
            -np.inf if token is None or token < 0 else float(scores_V[token]) for token in (our_token, their_token)
        )
        left, margin, moved = None, our_score - their_score, 1.0
        if config.num_beams > 1:
            left, margin, moved = beam_margin(reference, config, source, ours.targets[number], theirs.targets[number])
        found.append(
            TextDifference(
                text=number,
                step=step,
                ours=our_token,
                theirs=their_token,
                our_score=our_score,
                their_score=their_score,
                rank=int((scores_V > their_score).sum()),
                left_at=left,
                margin=float(margin),
                tolerance=2 * moved * errors[source],
                prefix=list(prefix),
            )
        )
    return found


def beam_margin(
    reference: Reference, config: GenerationConfig, source: int, ours: Text, theirs: Text
) -> tuple[int | None, float, float]:
    """Find where a text leaves the beams, or compare finished texts.

    Args:
        reference: the model and its sources.
        config: the settings.
        source: the number of the source.
        ours: the reference's text, its end token included.
        theirs: the candidate's.

    Returns:
        The step at which the text is no longer among the beams, or None; by how much its score is too low; and how many
        errors of logits this contains.
    """
    guide = Guide.none(len(reference.source_ids))
    followed = [(theirs,) if number == source else () for number in range(len(reference.source_ids))]
    try:
        guided_search(reference, config, guide._replace(texts=followed))
    except Diverged as diverged:
        step = diverged.step
        worst = min(reference.total(source, prefix[1:], config) for prefix in diverged.kept)
        return step - 1, worst - reference.total(source, theirs[:step], config), float(step)
    scores, lengths = [], []
    for text in (ours, theirs):
        lengths.append(len(text) ** config.length_penalty)
        scores.append(reference.total(source, text, config) / lengths[-1])
    return None, scores[0] - scores[1], max(len(ours), len(theirs)) / min(lengths)
