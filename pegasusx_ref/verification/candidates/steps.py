"""A candidate that decodes step by step: the tensors of all steps, assembled to those of one run. [spec 16]"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError, shown
from pegasusx_ref.files.reading import reading
from pegasusx_ref.generation.config import MAX_LENGTH
from pegasusx_ref.tracing.trace_points import TRACE_POINTS, general

Steps = Sequence[Mapping[str, Any]]
StepSource = Mapping[str, Any] | Steps | Callable[[int], Mapping[str, Any]]
PREFIX = re.compile(r"step\.(\d{1,7})\.(.+)", re.DOTALL)
MAX_LISTED = 5  # names in a warning
CACHE = "decoder.layers.{}.self_attn.cache.{}"  # of a layer, "k" or "v": (B, H, X, F) or (B, X, D) after a step


def from_steps(source: StepSource, num_steps: int | None = None) -> dict[str, np.ndarray]:
    """Assemble the tensors of a candidate that decodes one token a step to those of one run. [spec 16.25]

    The decoder's tensors of step t have one row: (B, 1, D), (B, H, 1, F), scores and probabilities (B, H, 1, X). X is
    t + 1; with fewer keys they are the last ones; what lies behind a static cache's first t + 1 keys must be masked.
    The encoder's tensors, and keys and values of the cross-attention, are those of the first step that shows them.

    Args:
        source: tensors by trace-point name: a sequence of mappings, one a step; a function from the step to one; or a
            mapping, such as a dump, of names that begin with "step.0.", or of tensors with a step axis after B.
        num_steps: the number of target tokens; for a function, which has no length of its own.

    Returns:
        The tensors by name, as `verify` takes them. Those that a step lacks are left out, with a warning. Caches, which
        are no trace points, are left out too; other names are kept, so that `verify` lists them as unknown.

    Raises:
        InputError: no steps, or tensors of different steps that do not fit each other.
    """
    steps = as_steps(source, num_steps)
    names = dict.fromkeys(name for step in steps for name in step)
    lacking = {name: t for name in names if (t := first_without(name, steps)) is not None}
    if lacking:
        listed = ", ".join(f"{name} (step {t})" for name, t in list(lacking.items())[:MAX_LISTED])
        more = f" and {len(lacking) - MAX_LISTED} more" if len(lacking) > MAX_LISTED else ""
        warnings.warn(f"left out, because a step lacks them: {listed}{more}", stacklevel=2)
    return {name: assembled(name, steps) for name in names if name not in lacking and ".cache." not in name}


def as_steps(source: StepSource, num_steps: int | None = None) -> list[dict[str, np.ndarray]]:
    """Convert any form of steps to arrays by name, a mapping a step; see `from_steps`."""
    steps: list[Mapping[str, Any]]
    if isinstance(source, Mapping):
        steps = [*(by_prefix(source) or by_axis(source))]
    elif callable(source):
        if num_steps is None:
            raise InputError("num_steps=None: a function of the step needs the number of steps")
        steps = [source(t) for t in range(num_steps)]
    else:
        steps = list(source) if isinstance(source, list | tuple) else []
    if not steps or not all(isinstance(step, Mapping) for step in steps):
        raise InputError(f"steps are {shown(source)}: pass a mapping of tensors by name for each step")
    arrays: list[dict[str, np.ndarray]] = []
    for t, step in enumerate(steps):
        arrays.append({})
        for name, tensor in step.items():
            with reading(f"step {t}: tensor {shown(name)}", "an array", InputError):
                arrays[t][str(name)] = to_numpy(tensor)
    return arrays


def by_prefix(tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sort tensors by the step that their names begin with; what has no step belongs to the first."""
    matches = {name: match for name in tensors if (match := PREFIX.fullmatch(str(name)))}
    if not matches:
        return []
    count = 1 + max(int(match[1]) for match in matches.values())
    if count > min(MAX_LENGTH, len(matches)):
        raise InputError(f"names of steps go to step.{count - 1}, but only {len(matches)} tensors have one")
    steps: list[dict[str, Any]] = [{} for _ in range(count)]
    for name in tensors:
        match = matches.get(name)
        steps[int(match[1]) if match else 0][match[2] if match else name] = tensors[name]
    return steps


def by_axis(tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split tensors that have one more axis than their trace point; a dump of cached keys has it too."""
    steps: list[dict[str, Any]] = []
    for name in tensors:
        tensor = to_numpy(tensors[name])
        letters = TRACE_POINTS.get(general(name), "BHXF" if ".self_attn.cache." in name else "")
        if "L" in letters + ("L" if letters == "BHXF" else "") and tensor.ndim == len(letters) + 1:
            steps += [{} for _ in range(len(steps), tensor.shape[1])]
            for t in range(tensor.shape[1]):
                steps[t][name] = tensor[:, t]
        else:
            steps = steps or [{}]
            steps[0][name] = tensor
    return steps


def first_without(name: str, steps: list[dict[str, np.ndarray]]) -> int | None:
    """Return the first step that lacks a tensor with a row for each step, or None."""
    if "L" not in TRACE_POINTS.get(general(name), ""):
        return None
    return next((t for t, step in enumerate(steps) if name not in step), None)


def assembled(name: str, steps: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Assemble one tensor, which every step shows if it has a row for each step."""
    letters = TRACE_POINTS.get(general(name), "")
    if "L" not in letters:
        return next(step[name] for step in steps if name in step)
    axis = letters.index("L")
    rows = [step[name] for step in steps]
    rows = [np.expand_dims(row, axis) if row.ndim == len(letters) - 1 else row for row in rows]
    if letters == "BHLX" and all(row.ndim == 4 for row in rows):
        filling = -np.inf if name.endswith(".scores") else 0.0
        rows = [whole_row(row, t, len(rows), filling) for t, row in enumerate(rows)]
    if len({row.shape for row in rows}) > 1 or rows[0].ndim <= axis:
        sizes = ", ".join(str(row.shape) for row in rows[:4])
        raise InputError(f"{name}: the steps have shapes {sizes}: pass one row of the same size for each step")
    return np.concatenate(rows, axis=axis)


def whole_row(row: np.ndarray, step: int, num_steps: int, filling: float) -> np.ndarray:
    """Put the scores or probabilities (B, H, 1, X) of a step into a row of all tokens."""
    whole = np.full((*row.shape[:3], num_steps), filling, dtype=row.dtype)
    X = min(row.shape[3], num_steps)
    first = max(step + 1 - X, 0)
    whole[..., first : first + X] = row[..., :X]
    return whole
