"""The results of a verification of generated texts, and their text and JSON forms. [spec 16]"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.files.json_files import finite_or_word
from pegasusx_ref.rendering.tables import counted

TIE, LOGITS = "tie", "logits"


class Explanation(NamedTuple):
    """What a candidate did instead: with it, the reference generates the candidate's texts.

    Attributes:
        setting: the setting that differs, "cache", "attention_mask", "logits" or "tie".
        reason: in words.
        is_exact: whether the texts follow without a tie.
    """

    setting: str
    reason: str
    is_exact: bool = True


class TextDifference(NamedTuple):
    """The first step at which a text differs. Scores are those of the search: logits, with beams log-probabilities.

    Attributes:
        text: the number of the text: source times num_return_sequences, plus its rank.
        step: the first step whose token differs, from 0.
        ours: the reference's token there; None after the end of the text.
        theirs: the candidate's.
        our_score: of the reference's token, after all processors.
        their_score: of the candidate's.
        rank: of the candidate's token among all, from 0.
        left_at: with beams, the step at which the text is no longer among the reference's beams; None where it is to
            the end, and the reference prefers another finished text.
        margin: by how much the text's score is too low: at this step; with beams the sum of its scores, where it
            leaves the beams, or that of the finished texts.
        tolerance: how much of it may be rounding.
        prefix: the decoder's input at this step, to `verify`.
    """

    text: int
    step: int
    ours: int | None
    theirs: int | None
    our_score: float
    their_score: float
    rank: int
    left_at: int | None
    margin: float
    tolerance: float
    prefix: list[int]


@dataclass
class GenerationReport:
    """The results of `verify_generation`.

    Attributes:
        passed: whether every text is right, or differs by a tie only.
        rows: the first difference of each text that differs, ties included.
        explanations: what the candidate did instead, the most likely first; "tie" where rounding explains it.
        arithmetic: the name of the arithmetic that set the tolerance.
        sequences: the reference's ids (B R, L), the start token first.
        notes: what is unusual but right.
    """

    passed: bool
    rows: list[TextDifference]
    explanations: list[Explanation]
    arithmetic: str
    sequences: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """The most likely reason, in words; "" where nothing differs."""
        return self.explanations[0].reason if self.explanations else ""

    def __str__(self) -> str:
        """Format the report: reasons, then a line for each text that differs."""
        lines = []
        for number, (_, reason, is_exact) in enumerate(self.explanations):
            lines.append(f"{'Or' if number else 'Reason'}: {reason}" + ("" if is_exact else " (and a tie)"))
        lines += [row_text(row) for row in self.rows]
        texts = len(self.sequences)
        verdict = "pass" if self.passed else "fail"
        counts = f"{counted(texts, 'text', separator='')} in {self.arithmetic}: {texts - len(self.rows)} the same"
        lines += [f"{counts}, {verdict}", *self.notes]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Convert the report to an object that JSON can hold."""
        return {
            "passed": self.passed,
            "reason": self.reason,
            "explanations": [explanation._asdict() for explanation in self.explanations],
            "rows": [{key: finite_or_word(value) for key, value in row._asdict().items()} for row in self.rows],
            "arithmetic": self.arithmetic,
            "sequences": self.sequences.tolist(),
            "notes": self.notes,
        }


def row_text(row: TextDifference) -> str:
    """Format the first difference of a text."""
    ours, theirs = ("the end" if token is None else str(token) for token in (row.ours, row.theirs))
    left = "" if row.left_at is None else f", out of the beams at step {row.left_at}"
    return (
        f"text {row.text}, step {row.step}: {theirs} (score {row.their_score:.5g}, rank {row.rank}) instead of {ours} "
        f"(score {row.our_score:.5g}){left}; margin {row.margin:.3g}, rounding allows {row.tolerance:.2g}"
    )
