"""How the scores of finished texts may be divided by their length instead. [spec 16]"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pegasusx_ref.generation import GenerationConfig


class LengthRule(float):
    """A length penalty that stands for another divisor than the length to its power, length**penalty in beam search."""

    _divisor: Callable[[int, float], float]

    def __new__(cls, penalty: float, divisor: Callable[[int, float], float]) -> "LengthRule":
        """Keep the divisor beside the number.

        Args:
            penalty: the number.
            divisor: from the number of generated tokens and the penalty to what divides the score.
        """
        rule = super().__new__(cls, penalty)
        rule._divisor = divisor
        return rule

    def __rpow__(self, length: int, _: Any = None) -> float:  # type: ignore[override]
        """Return what divides the score of a text of this length."""
        return self._divisor(int(length), float(self))


def length_rules(config: GenerationConfig, source_length: int, hypothesis: Callable[..., Any]) -> Iterator[Any]:
    """List other rules.

    Args:
        config: the settings.
        source_length: T.
        hypothesis: builds the result from setting, reason and settings.
    """
    given = config.length_penalty

    def changed(reason: str, penalty: float) -> Any:
        return hypothesis("length_penalty", reason, replace(config, length_penalty=penalty))

    if given != 0:
        yield changed(f"length_penalty={given} is not applied", 0.0)
        for reason, divisor in (
            ("counts the start token", lambda length, a: (length + 1) ** a),
            ("counts one token too few", lambda length, a: max(length - 1, 1) ** a),
            ("divides by ((5 + length) / 6)^length_penalty", lambda length, a: ((5 + length) / 6) ** a),
            ("counts the tokens of the source too", lambda length, a: (length + source_length) ** a),
            ("has the wrong sign", lambda length, a: length**-a),
        ):
            yield changed(f"length_penalty {reason}", LengthRule(given, divisor))
