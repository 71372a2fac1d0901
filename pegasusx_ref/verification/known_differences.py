"""Known differences: what may fail in an implementation for a known reason. [spec 16]"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.reading import as_path, read_bytes, reading
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, is_gradient
from pegasusx_ref.verification.checking.error_bounds import Errors
from pegasusx_ref.verification.shipped_files import shipped_text

if TYPE_CHECKING:
    from pegasusx_ref.verification.verdicts import Check  # which imports this module

MAX_SIZE = 2**20  # bytes of a file
MAX_PATTERN = 200  # characters
MEASURES = {"rho": "rho", "error": "largest_error", "end_to_end": "end_to_end"}  # and the attribute of a `Check`
LIMIT = re.compile(r",\s*(\w+)\s*<\s*([^,\s]+)\s*$")
PATTERN_PART = re.compile(r"\*+|\[!?\]?[^\]]*\]|.", re.DOTALL)
POINT_PART = re.compile(r"\{\w\}|.")
EXPECTED = "expected PATTERN: REASON, or PATTERN: REASON, error < 1e-4"


@dataclass(frozen=True)
class KnownDifference:
    """A difference that is expected.

    Attributes:
        pattern: a shell pattern of tensor names; ``*`` matches dots too.
        reason: why it is accepted, in words.
        limits: measures of a tensor (rho, the largest error, end_to_end) and the number that each must stay below.

    Raises:
        InputError: a pattern that matches no trace point, no reason, or another limit than a number above 0.
    """

    pattern: str
    reason: str
    limits: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        where = f"known difference {shown(self.pattern)}"
        with reading(where, f"readable: {EXPECTED}", InputError):
            object.__setattr__(self, "limits", tuple((measure, float(limit)) for measure, limit in self.limits))
            for measure, limit in self.limits:
                if measure not in MEASURES:
                    raise InputError(f"{where}: a limit of {shown(measure)}: choose one of {', '.join(MEASURES)}")
                if not (limit > 0 and isfinite(limit)):
                    raise InputError(f"{where}: {measure} < {limit:g}: a limit must be above 0 and finite")
            if not self.reason.strip():
                raise InputError(f"{where}: has no reason: {EXPECTED}")
            matches_one = is_gradient(self.pattern) or any(can_match(self.pattern, point) for point in TRACE_POINTS)
            if len(self.pattern) > MAX_PATTERN or not matches_one:
                raise InputError(f"{where}: matches no trace point: pegasusx_ref.TRACE_POINTS lists them")

    def __str__(self) -> str:
        return f"{self.pattern}: {self.reason}" + "".join(f", {what} < {most:g}" for what, most in self.limits)

    def matches(self, name: str) -> bool:
        """Return whether a tensor's name matches the pattern."""
        return fnmatchcase(name, self.pattern)

    def covers(self, name: str, check: "Check") -> bool:
        """Return whether a tensor may differ as its check says: in its numbers only, by less than the limits.

        Args:
            name: the tensor's name.
            check: its `Check`.
        """
        below = all(getattr(check, MEASURES[measure]) < limit for measure, limit in self.limits)
        return self.matches(name) and is_numerical(check) and below

    def widened(self, errors: Errors) -> Errors | None:
        """Add what a tensor that is not shown may differ by; None without a limit of its rho or error.

        Args:
            errors: the tensor's own.
        """
        limits = dict(self.limits)
        rho, error = limits.get("rho", np.inf), limits.get("error", np.inf)
        if rho == error == np.inf:
            return None
        by_rho = rho**2 * errors.variance.mean(axis=-1, keepdims=True)  # NaN where that is inf times 0
        return errors.inheriting(np.broadcast_to(np.fmin(by_rho, error**2 / 3), errors.variance.shape), error)


Known = str | Path | KnownDifference | Iterable[str | KnownDifference]  # a file, the name of a list here, or lines


def is_numerical(check: "Check") -> bool:
    """Return whether the numbers of a tensor differ, and not its shape, its mask, or by NaN or infinity."""
    return not check.note and isfinite(check.error)


def parse_known(line: str | KnownDifference) -> KnownDifference:
    """Parse a line such as ``encoder.embeddings: float32 positions, error < 1e-4``. [spec 16.18]

    Raises:
        InputError: a line of another form, a limit that is not a number above 0, or a pattern that matches no trace
            point.
    """
    if isinstance(line, KnownDifference):
        return line
    if not isinstance(line, str):
        raise InputError(f"known difference {shown(line)}: {EXPECTED}")
    pattern, _, reason = (part.strip() for part in line.partition(":"))
    if not pattern or not reason:
        raise InputError(f"known difference {shown(line)}: {EXPECTED}")
    limits: list[tuple[str, float]] = []
    while (match := LIMIT.search(reason)) is not None:
        with reading(f"known difference {shown(line)}", "readable", InputError, "write a limit as in error < 1e-4"):
            limits.insert(0, (match.group(1), float(match.group(2))))
        reason = reason[: match.start()].strip()
    if "<" in reason or ">" in reason:
        raise InputError(
            f"known difference {shown(line)}: a reason cannot contain < or >; limits end the line, as in "
            "', rho < 100, error < 1e-4'"
        )
    return KnownDifference(pattern, reason, tuple(limits))


def can_match(pattern: str, point: str) -> bool:
    """Return whether a shell pattern matches the name of a trace point with any numbers of layer and block.

    Args:
        pattern: such as ``encoder.layers.1?.*``.
        point: a key of `TRACE_POINTS`.
    """
    parts = POINT_PART.findall(point)
    reached = {0}  # numbers of parts that the beginning of the pattern can match
    for token in PATTERN_PART.findall(pattern):
        if token.startswith("*"):
            reached = set(range(min(reached, default=len(parts) + 1), len(parts) + 1))
            continue
        steps = set()
        for at in (at for at in reached if at < len(parts)):
            is_number = len(parts[at]) > 1
            if any(fnmatchcase(character, token) for character in ("0123456789" if is_number else parts[at])):
                steps |= {at, at + 1} if is_number else {at + 1}
        reached = steps
    return len(parts) in reached


def read_known(source: str | Path) -> list[KnownDifference]:
    """Read known differences, one on each line; lines that begin with # are comments.

    Args:
        source: a file, or the name of a list that comes with this package: "transformers" or "flax".

    Raises:
        InputError: no such file, or a line of another form.
    """
    if (text := shipped_text(source, "known", ".txt")) is None:
        path = as_path(source)
        with reading(path, "a list of known differences", InputError):
            text = read_bytes(path, MAX_SIZE).decode()
    lines = (line.strip() for line in text.splitlines())
    return [parse_known(line) for line in lines if line and not line.startswith("#")]


def known_differences(known: Known) -> list[KnownDifference]:
    """Return the known differences of an argument of `verify`."""
    if isinstance(known, KnownDifference):
        return [known]
    if isinstance(known, str) and ": " in known:
        return [parse_known(known)]
    if isinstance(known, str | Path):
        return read_known(known)
    if not isinstance(known, Iterable):
        raise InputError(f"known={shown(known)}: pass a file, or a list of lines: {EXPECTED}")
    return [parse_known(line) for line in known]
