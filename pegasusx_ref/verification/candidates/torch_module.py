"""Capture of the values of any torch module by hooks. [spec 16]"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError, reason, shown
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.candidates.inputs import Inputs
from pegasusx_ref.verification.candidates.mapping import map_names
from pegasusx_ref.verification.candidates.module_values import Value, part_of, wanted_values
from pegasusx_ref.verification.candidates.name_maps import NameMap, read_mapping
from pegasusx_ref.verification.candidates.sources import Candidate


def call(module: Any, inputs: Mapping[str, Any]) -> Any:
    """Call a module with the inputs of a run, by name."""
    return module(**inputs)


def from_torch_module(
    module: Any,
    mapping: NameMap,
    config: PegasusXConfig | None = None,
    run: Callable[[Any, Mapping[str, Any]], Any] = call,
) -> Candidate:
    """Return a candidate that runs a torch module and captures values of its submodules by hooks. [spec 16.22]

    Values are copied, because a later operation may work in place, and the hooks are removed after the run.

    Args:
        module: a `torch.nn.Module`, in `eval` mode.
        mapping: as in `from_dump`, from trace points to module paths, such as ``encoder.0.mlp``: the module's output.
            ``PATH:input`` is its first input, ``PATH:input.1`` the second, ``PATH:output.1`` the second output,
            ``PATH#2`` its second call in a run.
        config: the model's configuration, as in `from_dump`.
        run: calls the module with the inputs, tensors by name on the module's device.

    Raises:
        InputError: the module is none, or the mapping names one that there is not; when it runs, a value that there is
            not.
    """
    if isinstance(module, type) or not hasattr(module, "named_modules"):
        raise InputError(f"module={shown(module)}: pass a torch.nn.Module, such as the model itself")
    mappings, modules = read_mapping(mapping), dict(module.named_modules(remove_duplicate=False))
    values = list(wanted_values(mappings, modules))

    def capture(inputs: Inputs) -> Mapping[str, np.ndarray]:
        import torch

        captured = dict[str, np.ndarray]()
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        tensors = {
            name: torch.from_numpy(np.asarray(array, dtype=np.int64)).to(device)
            for name, array in inputs.items()
            if array is not None
        }
        with ExitStack() as hooks:
            watch(modules, values, captured, hooks)
            with torch.no_grad():
                run(module, tensors)
        return map_names(captured, mappings, config, inputs, others=False)

    return capture


def watch(modules: Mapping[str, Any], values: list[Value], captured: dict[str, np.ndarray], hooks: ExitStack) -> None:
    """Register hooks that capture values.

    Args:
        modules: by path.
        values: to capture.
        captured: where copies of them are stored, by name.
        hooks: removes the hooks.
    """
    by_module: dict[str, list[Value]] = defaultdict(list)
    for value in values:
        by_module[value.path].append(value)
    calls: Counter[str] = Counter()

    def keep(path: str, value: Any, is_input: bool) -> None:
        for wanted in by_module[path]:
            if (wanted.is_input, wanted.call) == (is_input, calls[path]):
                try:
                    captured[wanted.name] = np.array(to_numpy(part_of(value, wanted.parts)))
                except Exception as error:
                    raise InputError(f"{shown(wanted.name)}: the module has no such value: {reason(error)}") from None

    def before(path: str, arguments: Any, keywords: Any) -> None:
        calls[path] += 1
        keep(path, [*arguments, *keywords.values()], is_input=True)

    for path in by_module:
        module = modules[path]
        handle = module.register_forward_pre_hook(
            lambda _, arguments, keywords, path=path: before(path, arguments, keywords), with_kwargs=True
        )
        hooks.callback(handle.remove)
        handle = module.register_forward_hook(lambda _, __, result, path=path: keep(path, result, is_input=False))
        hooks.callback(handle.remove)
