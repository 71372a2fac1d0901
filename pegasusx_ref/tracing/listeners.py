"""Scopes, taps and listeners: how an intermediate tensor gets its public name and is recorded or replaced. [spec 16]

The model opens a scope for each layer, an operation taps the tensors it computes, and together they form a name such as
``encoder.layers.0.self_attn.local.3.probs`` (all of them: `pegasusx_ref.tracing.trace_points`). Without a
listener a tap costs one lookup. A listener may replace the value; the computation continues with the replacement.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any, NamedTuple


class Listener(NamedTuple):
    """A callback and the patterns of the tensor names it is called for."""

    patterns: tuple[str, ...]
    callback: Callable[[str, Any], Any]

    def wants(self, name: str) -> bool:
        """Return whether a full name matches one of the patterns."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


_place: ContextVar[tuple[str, ...]] = ContextVar("place", default=())
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Prefix the names of all taps inside the block with `name`. [spec 16.1]

    Args:
        name: one or more dotted parts, such as ``"encoder.layers.0"``.
    """
    token = _place.set((*_place.get(), name))
    try:
        yield
    finally:
        _place.reset(token)


def tap(name: str, value: Any) -> Any:
    """Pass a tensor to the listeners and return it, or a listener's replacement. [spec 16.2]

    Args:
        name: the tensor's name inside the current scope.
        value: an array of any backend; listeners must not write into it.

    Returns:
        `value`, or its replacement.
    """
    listeners = _listeners.get()
    if not listeners:
        return value
    full_name = ".".join((*_place.get(), name))
    for listener in listeners:
        if listener.wants(full_name):
            replacement = listener.callback(full_name, value)
            value = value if replacement is None else replacement
    return value


def wanted(name: str) -> bool:
    """Return whether a tap of this name in the current scope would reach a listener. [spec 16.3]

    A backend that fuses operations checks this before it skips a tensor, such as scores, that only a listener needs.

    Args:
        name: the tensor's name inside the current scope.
    """
    full_name = ".".join((*_place.get(), name))
    return any(listener.wants(full_name) for listener in _listeners.get())


@contextmanager
def listen(callback: Callable[[str, Any], Any], *patterns: str) -> Iterator[None]:
    """Call `callback(name, value)` at every matching tap inside the block. [spec 16.4]

    Listeners nest: the outermost is called first, and an inner one gets the value that the outer ones returned. They
    belong to the current context: a thread started inside the block has none, unless it runs in a copy of that context.
    The callback must not wait for another thread that runs a model.

    Args:
        callback: is called with the full name and the tensor; a result other than None replaces the tensor.
        patterns: shell-style patterns of full names, ``*`` matches dots too; none means every name.
    """
    token = _listeners.set((*_listeners.get(), Listener(patterns or ("*",), callback)))
    try:
        yield
    finally:
        _listeners.reset(token)


@contextmanager
def record(*patterns: str) -> Iterator[dict[str, Any]]:
    """Collect every matching tensor inside the block into a dictionary, in order of execution. [spec 16.5]

    Args:
        patterns: shell-style patterns of full names; none means every name.

    Returns:
        A context manager that yields the dictionary, filled as the model runs. Tensors stay on their device and are not
        copied; for a name that occurs more than once, as in the steps of `generate`, the last one is kept.
    """
    trace: dict[str, Any] = {}
    with listen(trace.__setitem__, *patterns):
        yield trace
