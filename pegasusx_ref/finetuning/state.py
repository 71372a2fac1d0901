"""The state of a run in one file: weights and optimizer of the same step, and the settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pegasusx_ref.checkpoint.safetensors_file import read_safetensors
from pegasusx_ref.checkpoint.safetensors_writer import file_layout, safetensors_writer
from pegasusx_ref.errors import CheckpointError, InputError, shown
from pegasusx_ref.files.reading import reading

FORMAT = 1


class State(NamedTuple):
    """What a run continues from, beside its tensors; random numbers and the order of the pairs follow from the step.

    Attributes:
        step: number of steps so far.
        best: the lowest loss of the evaluations; None before the first.
        settings: that a resumed run must have too.
    """

    step: int
    best: float | None
    settings: Mapping[str, Any]


def write_state(path: Path, state: State, module: nn.Module, optimizer: Optimizer) -> None:
    """Replace the file of a run's state.

    Raises:
        OutputError: the file cannot be written; the old one stays.
    """
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in _tensors(module, optimizer).items()}
    parts = {name: (array.shape, array.dtype.name) for name, array in tensors.items()}
    ordered = dict(sorted(parts.items(), key=lambda part: -np.dtype(part[1][1]).itemsize))
    metadata = {"format": str(FORMAT), "state": json.dumps(state._asdict())}
    with safetensors_writer(path, file_layout(ordered, metadata)) as writer:
        for name, array in tensors.items():
            writer(name, array)


def read_state(path: Path, settings: Mapping[str, Any], module: nn.Module, optimizer: Optimizer) -> State:
    """Read what `write_state` wrote, into a module and its optimizer.

    Args:
        path: the file.
        settings: of the run that continues.
        module: the same as the one that was written.
        optimizer: likewise, still without state.

    Raises:
        CheckpointError: the file is damaged.
        InputError: it was written with other settings.
    """
    tensors, metadata = read_safetensors(path)
    with reading(path, "the state of a fine-tuning", CheckpointError):
        if metadata["format"] != str(FORMAT):
            raise ValueError(f"the format is not {FORMAT}")
        state = State(**json.loads(metadata["state"]))
    changed = [
        f"{name}={shown(before)}, not {shown(value)}"
        for name, value in settings.items()
        if (before := state.settings.get(name)) != value
    ]
    if changed:
        raise InputError(
            f"{path.parent}: its run has {'; '.join(changed)}: resume it with its own settings, or name another folder"
        )
    with reading(path, "the state of this model", CheckpointError), torch.no_grad():
        copied = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
        names = [name for name, _ in module.named_parameters()]
        module.load_state_dict({name: copied.pop(f"model:{name}") for name in names})
        found: dict[int, dict[str, Tensor]] = {}
        for full_name, tensor in copied.items():
            key, name = full_name.split(":")
            found.setdefault(names.index(name), {})[key] = tensor
        optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def _tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return parameters, and the optimizer's tensors, by the parameter's name behind that of their kind."""
    named = dict(module.named_parameters())
    kept = {f"{key}:{name}": tensor for name, p in named.items() for key, tensor in optimizer.state.get(p, {}).items()}
    return {f"model:{name}": p for name, p in named.items()} | kept
