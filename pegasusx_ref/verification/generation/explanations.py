"""What a candidate did instead: searches with one thing wrong that generate its texts. [spec 16]"""

from collections.abc import Iterator, Sequence
from typing import Any

from pegasusx_ref.generation import GenerationConfig
from pegasusx_ref.verification.generation.cache_faults import CacheFault, cache_faults
from pegasusx_ref.verification.generation.guided_search import ChangeScores, Diverged, Guide, guided_search
from pegasusx_ref.verification.generation.reference import Reference
from pegasusx_ref.verification.generation.report import Explanation
from pegasusx_ref.verification.generation.setting_faults import other_values, setting_faults
from pegasusx_ref.verification.generation.texts import Texts


class Explainer:
    """The searches that may explain a candidate's texts.

    Args:
        reference: the model and its sources.
        config: the settings.
        ours: the reference's texts.
        theirs: the candidate's.
        errors: of the logits, for each source.
        start: the token that the candidate's texts begin with, or None.
    """

    def __init__(
        self,
        reference: Reference,
        config: GenerationConfig,
        ours: Texts,
        theirs: Texts,
        errors: Sequence[float],
        start: int | None,
    ) -> None:
        self._reference, self._config, self._start = reference, config, start
        self._ours, self._theirs = ours, theirs
        R = config.num_return_sequences
        groups = [[texts.targets[i : i + R] for i in range(0, len(texts.targets), R)] for texts in (theirs, ours)]
        self._guide = Guide(groups[0], groups[1], errors)

    def follows(
        self, config: GenerationConfig, is_exact: bool = False, reference: Reference | None = None, **changes: Any
    ) -> bool:
        """Return whether a search generates the candidate's texts.

        Args:
            config: its settings.
            is_exact: without help where scores tie.
            reference: the model and its sources, where they are others.
            changes: other arguments of `guided_search`, or a fault of the cache.
        """
        reference = reference or self._reference
        if (fault := changes.pop("fault", None)) is not None:
            changes["step"] = fault.step(reference)
        guide = self._guide._replace(errors=[0.0] * len(self._guide.errors)) if is_exact else self._guide
        try:
            ids = guided_search(reference, config, guide, **changes)
        except Diverged:
            return False
        return all(Texts(ids.tolist(), self._config, config.start_token_id).same(self._theirs))

    def explanations(self) -> Iterator[Explanation]:
        """Yield everything that explains the texts."""
        if (explanation := self._after_end()) is not None:
            yield explanation
            return
        config, reference = self._config, self._reference
        first_tokens = {text[0] for text in self._theirs.targets if text}
        found = list[Explanation]()
        for hypothesis in setting_faults(config, first_tokens, self._start, reference.source_ids.shape[1]):
            found += self._explained(*hypothesis)
        if reference.mask_BT is not None:
            unmasked = Reference(reference.model, reference.source_ids, None)
            found += self._explained("attention_mask", "attention_mask is not applied", config, reference=unmasked)
        for fault in cache_faults(reference, config.num_beams, config.lengths()[1], self._first_wrong_choice()):
            found += self._explained("cache", fault.reason, config, fault=fault)
        yield from found
        if not any(explanation.is_exact for explanation in found):
            for hypothesis in other_values(config):
                yield from self._explained(*hypothesis)

    def _explained(
        self,
        setting: str,
        reason: str,
        config: GenerationConfig,
        change: ChangeScores | None = None,
        processor: ChangeScores | None = None,
        fault: CacheFault | None = None,
        reference: Reference | None = None,
    ) -> Iterator[Explanation]:
        changes: dict[str, Any] = {"change": change, "processor": processor, "fault": fault, "reference": reference}
        if self.follows(config, **changes):
            yield Explanation(setting, reason, self.follows(config, is_exact=True, **changes))

    def _first_wrong_choice(self) -> int:
        """Return the first step after which the reference cannot follow the texts; the last step if it always can."""
        try:
            guided_search(self._reference, self._config, self._guide)
        except Diverged as diverged:
            return diverged.step - 1
        return self._config.lengths()[1] - 1

    def _after_end(self) -> Explanation | None:
        """Explain tokens after the end tokens of texts that are right up to there."""
        theirs, ends, fills = self._theirs, set(), set()
        for number, is_same in enumerate(self._ours.same(theirs)):
            if not is_same:
                text = theirs.texts[number]
                length = theirs.after_end.get(number, -1)
                if text[: max(length, 0)] != self._ours.texts[number] or length < 0:
                    return None
                ends.add(text[length])
                fills |= set(text[length + 1 :])
        if len(fills) == 1:
            return Explanation("pad_token_id", f"texts are filled with {fills.pop()} after their ends")
        given = self._config.eos_token_ids
        which = f"{ends.pop()} of eos_token_id={given}" if len(ends) == 1 < len(given) else f"eos_token_id={given}"
        return Explanation("eos_token_id", f"{which} does not end a text: it goes on")
