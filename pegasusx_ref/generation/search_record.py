"""What a search tells about its steps, where the caller wants it. [spec 12]"""

from typing import Any

import numpy as np

from pegasusx_ref.backend import Array, Backend

TOKEN_SCORES = ("transition_scores", "token_log_probs")


class SearchRecord:
    """The scores of the chosen tokens, and if wanted of all tokens. [spec 12.27]

    Args:
        scores: whether to keep the processed scores of all tokens at every step.
        logits: whether to keep the logits of all tokens at every step.

    Attributes:
        scores: float32 (N, V) of every step, or None; N counts beams.
        logits: float32 (N, V) of every step, or None.
        transition_scores: the processed scores of the chosen tokens (B R, L - 1).
        token_log_probs: the same, with scores normalized to log-probabilities.
        beam_indices: the row that generated each token (B R, L - 1), -1 after the end; None without beams.

    Source: HF `GenerationMixin.compute_transition_scores`.
    """

    def __init__(self, scores: bool = False, logits: bool = False) -> None:
        self.scores: list[np.ndarray] | None = [] if scores else None
        self.logits: list[np.ndarray] | None = [] if logits else None
        self.transition_scores: np.ndarray | None = None
        self.token_log_probs: np.ndarray | None = None
        self.beam_indices: np.ndarray | None = None

    def see_logits(self, logits: Array, ops: Backend) -> None:
        """Keep a step's logits (N, V), before the processors change them."""
        if self.logits is not None:
            self.logits.append(np.array(ops.to_numpy(logits)))

    def see_scores(self, scores: Array, ops: Backend) -> None:
        """Keep a step's processed scores (N, V)."""
        if self.scores is not None:
            self.scores.append(np.array(ops.to_numpy(scores)))
        self._newest = ops.to_float32(scores)

    def of_tokens(self, rows: np.ndarray, tokens: np.ndarray, ops: Backend) -> dict[str, np.ndarray]:
        """Return the newest step's scores of some tokens, given by row and column, by the attribute's name."""
        places = ops.asarray(rows), ops.asarray(tokens)
        found = self._newest[places], ops.log_softmax(self._newest)[places]
        return dict(zip(TOKEN_SCORES, map(ops.to_numpy, found), strict=True))

    def finish(self, tables: dict[str, np.ndarray]) -> None:
        """Take the attributes of the chosen texts, by name (B R, L - 1)."""
        for name, table in tables.items():
            setattr(self, name, table)

    def fields(self) -> dict[str, Any]:
        """Return the attributes by name, lists as tuples."""
        return {name: tuple(v) if isinstance(v, list) else v for name, v in vars(self).items() if name[0] != "_"}
