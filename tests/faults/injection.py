"""Injection of faults into a live transformers model, by hooks and attributes or by edits of a method's source.

Every helper returns an `Injection`; places are named as trace points are: ``encoder.layers.0.self_attn``, ``lm_head``.
Modules are changed in place, so that hooks on them observe the fault.
"""

import copy
import inspect
import textwrap
from collections.abc import Callable
from functools import partial, wraps
from itertools import count
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: faults are injected into its modules")

Injection = Callable[[Any], None]  # changes transformers' PegasusXForConditionalGeneration


def at(model: Any, place: str) -> Any:
    """Return a module."""
    return model.get_submodule(place if place == "lm_head" else f"model.{place}")


def all_of(*injections: Injection) -> Injection:
    """Combine several changes into one fault."""

    def inject(model: Any) -> None:
        for injection in injections:
            injection(model)

    return inject


def attribute(place: str, name: str, value: Any) -> Injection:
    """Set an attribute, which may be a module."""

    def inject(model: Any) -> None:
        module = at(model, place)
        getattr(module, name)  # fails if transformers has renamed it
        setattr(module, name, value)

    return inject


def borrowed(place: str, name: str, source: str) -> Injection:
    """Replace a module by a copy of another one."""
    return lambda model: setattr(at(model, place), name, copy.deepcopy(at(model, source)))


def swapped(place: str, one: str, other: str) -> Injection:
    """Exchange two modules."""

    def inject(model: Any) -> None:
        owner = at(model, place)
        first, second = getattr(owner, one), getattr(owner, other)
        setattr(owner, one, second)
        setattr(owner, other, first)

    return inject


def parameter(place: str, name: str, change: Callable[[Any], Any]) -> Injection:
    """Change a parameter; tied parameters keep their values."""

    def inject(model: Any) -> None:
        owner = at(model, place)
        changed = change(getattr(owner, name).detach().clone())
        setattr(owner, name, torch.nn.Parameter(changed.contiguous(), requires_grad=False))

    return inject


def nudged(place: str, name: str, index: tuple[int, ...], by: float) -> Injection:
    """Add to one element of a parameter."""

    def change(tensor: Any) -> Any:
        tensor[index] += by
        return tensor

    return parameter(place, name, change)


def computing(place: str, forward: Callable[..., Any]) -> Injection:
    """Replace a module's forward; its first argument is the module."""

    def inject(model: Any) -> None:
        module = at(model, place)
        module.forward = partial(forward, module)

    return inject


def for_globals(place: str, forward: Callable[..., Any]) -> Injection:
    """Replace a module's forward in every second call: an encoder layer calls modules for the tokens first."""

    def inject(model: Any) -> None:
        module, calls = at(model, place), count()
        right = module.forward
        module.forward = lambda *args: forward(module, *args) if next(calls) % 2 else right(*args)

    return inject


def altered(place: str, method: str = "forward", **changes: Callable[[Any], Any]) -> Injection:
    """Change arguments of a method, each by a function."""

    def inject(model: Any) -> None:
        right = getattr(at(model, place), method)
        signature = inspect.signature(right)

        @wraps(right)
        def wrong(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            for name, change in changes.items():
                bound.arguments[name] = change(bound.arguments[name])
            return right(*bound.args, **bound.kwargs)

        setattr(at(model, place), method, wrong)

    return inject


def returning(place: str, change: Callable[[Any, Any], Any], method: str = "forward") -> Injection:
    """Change the result of a method, by a function of the result and the arguments by name."""

    def inject(model: Any) -> None:
        right = getattr(at(model, place), method)
        signature = inspect.signature(right)

        @wraps(right)
        def wrong(*args: Any, **kwargs: Any) -> Any:
            return change(right(*args, **kwargs), signature.bind(*args, **kwargs).arguments)

        setattr(at(model, place), method, wrong)

    return inject


def combined(place: str, argument: str, source: str, combine: Callable[[Any, Any], Any]) -> Injection:
    """Change an argument by a function of it and of the latest result of another module."""

    def inject(model: Any) -> None:
        found: list[Any] = []
        at(model, source).register_forward_hook(lambda _, __, result: found.append(result))
        altered(place, "forward", **{argument: lambda given: combine(given, found[-1])})(model)

    return inject


def reading(place: str, source: str) -> Injection:
    """Feed a module with the latest input of another one."""

    def inject(model: Any) -> None:
        found: list[Any] = []
        at(model, source).register_forward_pre_hook(lambda _, args: found.append(args[0]))
        altered(place, "forward", input=lambda _: found[-1])(model)

    return inject


def piece(right: str, wrong: str, number: int = 0, times: int = 1) -> Callable[[str], str]:
    """Replace one of `times` occurrences in source text; any other count means that transformers has changed."""

    def edit(source: str) -> str:
        pieces = source.split(right)
        assert len(pieces) == times + 1, f"{right!r} occurs {len(pieces) - 1} times"
        return right.join(pieces[: number + 1]) + wrong + right.join(pieces[number + 1 :])

    return edit


def rewritten(place: str, *edits: Callable[[str], str], method: str = "forward", **names: Any) -> Injection:
    """Recompile a method of one module from edited source, which may use additional names."""

    def inject(model: Any) -> None:
        module = at(model, place)
        function = getattr(type(module), method)
        source = textwrap.dedent(inspect.getsource(function))
        for edit in edits:
            source = edit(source)
        scope = function.__globals__ | names
        exec(compile(source, f"<{function.__qualname__}, edited>", "exec"), scope)
        setattr(module, method, partial(scope[method], module))

    return inject


# --- wrong computations


def normalizing(place: str, normalized: Callable[[Any, float], Any]) -> Injection:
    """Replace a LayerNorm's normalization, in float64; weight, bias and the rounding of the result stay."""
    return computing(
        place, lambda m, x: (normalized(x.double(), m.eps) * m.weight.double() + m.bias.double()).to(x.dtype)
    )


def positions(side: str, of: Callable[[int, int], np.ndarray]) -> Injection:
    """Replace the positions (T, D); they are computed in float64 and rounded once."""

    def forward(_: Any, embeds: Any, *__: Any) -> Any:
        return torch.from_numpy(of(*embeds.shape[1:])).to(embeds.dtype)[None]

    return computing(f"{side}.embed_positions", forward)


def softmax(function: Callable[[Any], Any]) -> Any:
    """Wrap a function so that a `TorchFunctionMode` sees it as torch's softmax."""

    def softmax(scores: Any, dim: int) -> Any:
        if torch.overrides.has_torch_function((scores,)):
            return torch.overrides.handle_torch_function(softmax, (scores,), scores, dim=dim)
        return function(scores)

    return softmax


def noise(like: Any, seed: int = 0) -> Any:
    """Draw seeded normal numbers of a tensor's shape and dtype."""
    drawn = np.random.default_rng(seed).standard_normal(tuple(like.shape))
    return torch.from_numpy(drawn).to(like.dtype)
