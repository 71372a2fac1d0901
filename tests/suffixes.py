"""Names such as `scores_BHSX` say what an array's dimensions are; this watches that they tell the truth."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pegasusx_ref

ROOT = Path(pegasusx_ref.__file__).parents[1]
PACKAGES = (str(ROOT / "pegasusx_ref"), str(ROOT / "backends"))
SUFFIX = re.compile(r"_([BTSXGKHDFLMV1]+)$")


def find_mistakes(variables: dict[str, Any]) -> list[str]:
    """Compare names with shapes: as many dimensions as letters, one size a letter, 1 for the digit."""
    mistakes = []
    sizes: dict[str, tuple[int, str]] = {}
    for name, value in variables.items():
        match = SUFFIX.search(name)
        shape = getattr(value, "shape", None)
        if match is None or value is None:
            continue
        if not isinstance(shape, tuple):
            mistakes.append(f"{name} is a {type(value).__name__}, not an array")
            continue
        letters = match.group(1)
        if len(letters) != len(shape):
            mistakes.append(f"{name} has shape {shape}")
            continue
        for letter, size in zip(letters, shape, strict=True):
            known, where = (1, "a broadcast axis") if letter == "1" else sizes.setdefault(letter, (size, name))
            if size != known:
                mistakes.append(f"{name} has shape {shape}, but {letter} is {known} ({where})")
    return mistakes


@contextmanager
def watched() -> Iterator[set[str]]:
    """Collect the mistakes of every function of the packages that returns inside the block."""
    mistakes: set[str] = set()

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        # A function that raises also "returns", with None: it may have refused the very shape that its names promise.
        # Compiled templates have names of their own.
        is_ours = code.co_filename.startswith(PACKAGES) and code.co_filename.endswith(".py")
        if event == "return" and argument is not None and is_ours:
            for mistake in find_mistakes(frame.f_locals):
                mistakes.add(f"{Path(code.co_filename).name}:{code.co_qualname}: {mistake}")

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield mistakes
    finally:
        sys.setprofile(before)


@contextmanager
def unwatched() -> Iterator[None]:
    """Look away inside the block, which may be in one that is watched."""
    before = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(before)
