"""Public names for intermediate tensors: scopes give the place, taps mark the values, listeners see them. [spec 16]

The model opens a scope a layer, an operation taps what it computes, and together they spell a name such as
``encoder.layers.0.self_attn.local.3.probs`` (all of them: `pegasusx_ref.tracing.trace_points`). Where nobody listens, a
tap costs one look-up. A listener may replace the value, and the computation goes on with the replacement.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any, NamedTuple


class Listener(NamedTuple):
    """Someone who watches the taps whose names match one of the patterns."""

    patterns: tuple[str, ...]
    callback: Callable[[str, Any], Any]

    def wants(self, name: str) -> bool:
        """Tell whether a full name matches."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


_place: ContextVar[tuple[str, ...]] = ContextVar("place", default=())
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Put `name` in front of every tap inside the block. [spec 16.1]

    Args:
        name: one or more dotted parts, such as ``"encoder.layers.0"``.
    """
    token = _place.set((*_place.get(), name))
    try:
        yield
    finally:
        _place.reset(token)


def tap(name: str, value: Any) -> Any:
    """Show a tensor to the listeners and return it, or what a listener puts in its place. [spec 16.2]

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
    """Tell whether a tap of this name in the current scope would reach a listener. [spec 16.3]

    A backend that fuses operations asks this before it skips a tensor (scores, probabilities) that it would have to
    compute for the listener alone.

    Args:
        name: the tensor's name inside the current scope.
    """
    full_name = ".".join((*_place.get(), name))
    return any(listener.wants(full_name) for listener in _listeners.get())


@contextmanager
def listen(callback: Callable[[str, Any], Any], *patterns: str) -> Iterator[None]:
    """Call `callback(name, value)` at every matching tap inside the block. [spec 16.4]

    Listeners nest: the outermost sees a value first, an inner one sees what the outer ones made of it. They belong to
    the current context: a thread that is started inside the block sees none unless it runs in a copy of that context.

    Args:
        callback: gets the full name and the tensor; what it returns takes the tensor's place, None leaves it there.
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
        A context manager that gives the dictionary, filled as the model runs. Tensors are kept as they are, on their
        device and without a copy; of a name that occurs again, as in every step of `generate`, the last.
    """
    trace: dict[str, Any] = {}
    with listen(trace.__setitem__, *patterns):
        yield trace
