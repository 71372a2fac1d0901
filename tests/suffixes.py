"""Check that names such as `scores_BHSX` have the dimensions that they state; the key is in spec/01-notation.md.

The check runs in the whole suite and in every thread: each function of the packages is checked when it returns. A wrong
suffix is an error of the test that was running. `conftest.py` loads this module's hooks; elsewhere `-p suffixes` does.

Why not jaxtyping with beartype: the suffixes are the documentation of the golden functions. 118 functions have 348
suffixed names, 122 of them locals. The libraries need an annotation for each, which repeats the suffix in a second
notation, and they cannot check the 20 assignments that unpack tuples. The profile hook needs nothing in the code under
test. tests/test_properties.py takes 38 s of CPU time with it and 28 s without; the comparison itself is 1.2 s of that,
the rest is what any profile function costs in CPython 3.11.
"""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pegasusx_ref

ROOT = Path(pegasusx_ref.__file__).parents[1]
PACKAGES = (str(ROOT / "pegasusx_ref"), str(ROOT / "backends"))
SUFFIX = re.compile(r"_([BTSXGKHDFLMV1]+)$")

_mistakes: set[str] = set()


@cache
def letters_of(name: str) -> str:
    """Return the dimension letters at the end of a name, "" where there are none."""
    match = SUFFIX.search(name)
    return match.group(1) if match else ""


def find_mistakes(variables: dict[str, Any]) -> list[str]:
    """Compare names with shapes: one dimension per letter, one size per letter, size 1 for the digit 1."""
    mistakes = []
    sizes: dict[str, tuple[int, str]] = {}
    for name, value in variables.items():
        letters = letters_of(name)
        if not letters or value is None:
            continue
        shape = getattr(value, "shape", None)
        if not isinstance(shape, tuple):
            mistakes.append(f"{name} is a {type(value).__name__}, not an array")
            continue
        if len(letters) != len(shape):
            mistakes.append(f"{name} has shape {shape}")
            continue
        for letter, size in zip(letters, shape, strict=True):
            known, where = (1, "a broadcast axis") if letter == "1" else sizes.setdefault(letter, (size, name))
            if size != known:
                mistakes.append(f"{name} has shape {shape}, but {letter} is {known} ({where})")
    return mistakes


@cache
def is_checked(file: str) -> bool:
    """Return whether a file is the packages' own code. Compiled templates have names of their own."""
    return file.startswith(PACKAGES) and file.endswith(".py")


@cache
def has_suffix(*names: tuple[str, ...]) -> bool:
    """Return whether one of a function's names, in one of several tuples, has a suffix."""
    return any(letters_of(name) for group in names for name in group)


def _on_event(frame: FrameType, event: str, argument: object) -> None:
    # The order matters for the time: most events are calls, and most returns are of other packages.
    # A function that raises also "returns", with None: it may have refused the very shape that its names state.
    code = frame.f_code
    if event != "return" or argument is None or not is_checked(code.co_filename):
        return
    if not has_suffix(code.co_varnames, code.co_cellvars, code.co_freevars):
        return
    for mistake in find_mistakes(frame.f_locals):
        _mistakes.add(f"{Path(code.co_filename).name}:{code.co_qualname}: {mistake}")


def take_mistakes() -> list[str]:
    """Return the mistakes since the last call, of all threads."""
    found = sorted(_mistakes)
    _mistakes.clear()
    return found


@contextmanager
def watched() -> Iterator[None]:
    """Check the functions that return inside the block, in this thread and in all that start inside it."""
    before = sys.getprofile(), threading.getprofile()
    threading.setprofile(_on_event)
    sys.setprofile(_on_event)
    try:
        yield
    finally:
        sys.setprofile(before[0])
        threading.setprofile(before[1])


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[None]:
    """Check all tests of the session."""
    with watched():
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Watch again after a test that is marked, or in which Python dropped the hook (a RecursionError inside it)."""
    sys.setprofile(None if item.get_closest_marker("unwatched") else _on_event)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Report what was found during a test, its fixtures included, as an error of this test."""
    result = yield
    if mistakes := take_mistakes():
        pytest.fail("wrong dimension suffixes:\n" + "\n".join(mistakes), pytrace=False)
    return result
