"""A search of the reference that follows a candidate's texts, and tells where it leaves them. [spec 16]"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np

from pegasusx_ref.backend import Array
from pegasusx_ref.generation import Callbacks, GenerationConfig, NextLogits, search
from pegasusx_ref.verification.generation.reference import Prefix, Reference
from pegasusx_ref.verification.generation.texts import Text

ChangeScores = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids (N, n), scores (N, V) -> scores


class Diverged(Exception):
    """A text is no longer among those that the search keeps.

    Args:
        step: the number of tokens of the text so far.
        kept: the prefixes that are kept.
    """

    def __init__(self, step: int, kept: Sequence[Prefix]) -> None:
        super().__init__()
        self.step, self.kept = step, kept


class Guide(NamedTuple):
    """Texts that a search follows.

    Attributes:
        texts: of each source, those of the candidate.
        others: of each source, those that the reference prefers.
        errors: of each source, by how much the logits of the candidate may differ.
        is_strict: whether the search ends with `Diverged` where it cannot follow.
    """

    texts: Sequence[Sequence[Text]]
    others: Sequence[Sequence[Text]]
    errors: Sequence[float]
    is_strict: bool = True

    @classmethod
    def none(cls, sources: int) -> Self:
        """Return a guide to nowhere."""
        return cls([()] * sources, [()] * sources, [0.0] * sources)

    def check(self, source: int, prefixes: Sequence[Prefix]) -> None:
        """Check that the texts are among the prefixes of a source, all of one length.

        Raises:
            Diverged: one is not.
        """
        kept, step = {prefix[1:] for prefix in prefixes}, len(prefixes[0]) - 1
        for text in self.texts[source]:
            if self.is_strict and len(text) > step and text[:step] not in kept:
                raise Diverged(step, prefixes)

    def steer(self, source: int, prefix: Prefix, logits_V: np.ndarray) -> None:
        """Move the next logits by at most the rounding error, towards the texts and away from the others."""
        begun, step = prefix[1:], len(prefix) - 1

        def next_tokens(texts: Sequence[Text]) -> set[int]:
            return {text[step] for text in texts if len(text) > step and text[:step] == begun}

        wanted, unwanted = next_tokens(self.texts[source]), next_tokens(self.others[source])
        logits_V[list(wanted)] += self.errors[source]
        logits_V[list(unwanted - wanted)] -= self.errors[source]


class GuidedLogits:
    """The logits of a search, with its prefixes.

    Args:
        reference: the model and its sources.
        guide: the texts that the search follows.
        step: a decode step of its own, such as one with a wrong cache; that of the reference if None.
        change: changes the logits.
    """

    def __init__(
        self, reference: Reference, guide: Guide, step: NextLogits | None = None, change: ChangeScores | None = None
    ) -> None:
        self._reference, self._guide, self._step, self._change = reference, guide, step, change
        self._ids: list[np.ndarray] = []  # (B, L) of every step

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """Compute the next logits; see `NextLogits`."""
        prefixes = self._prefixes(ids_BL, visible)
        for source, rows in enumerate(prefixes):
            self._guide.check(source, rows)
        logits_BLV = self._reference.logits(prefixes) if self._step is None else np.array(self._step(ids_BL, visible))
        if self._change is not None:
            ids_Nn = np.array([prefix for rows in prefixes for prefix in rows])
            flat_NV = np.float32(logits_BLV).reshape(len(ids_Nn), -1)
            logits_BLV = self._change(ids_Nn, flat_NV).reshape(logits_BLV.shape)
        for source, rows in enumerate(prefixes):
            for row, prefix in enumerate(rows):
                self._guide.steer(source, prefix, logits_BLV[source, row])
        return logits_BLV

    def _prefixes(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> list[list[Prefix]]:
        self._ids.append(ids_BL)
        B, L = ids_BL.shape
        history = np.stack(self._ids, axis=1).reshape(B, -1)
        seen = np.ones((B, L, history.shape[1]), dtype=bool) if visible is None else visible
        return [[tuple(history[b, seen[b, row]].tolist()) for row in range(L)] for b in range(B)]


def guided_search(
    reference: Reference,
    config: GenerationConfig,
    guide: Guide,
    step: NextLogits | None = None,
    change: ChangeScores | None = None,
    processor: ChangeScores | None = None,
) -> np.ndarray:
    """Search for the texts of all sources.

    Args:
        reference: the model and its sources.
        config: the settings.
        guide: the texts that the search follows.
        step: see `GuidedLogits`.
        change: changes the logits before the processors.
        processor: runs after the processors.

    Returns:
        int64 ids (B R, L), the start token first.

    Raises:
        Diverged: the search cannot follow the guide.
    """
    logits = GuidedLogits(reference, guide, step, change)
    callbacks = Callbacks(logits_processor=() if processor is None else (processor,))
    source_ids, ops = reference.source_ids, reference.model.ops
    ids, _ = search(logits, len(source_ids), config, source_ids, ops=ops, callbacks=callbacks)
    return ids
