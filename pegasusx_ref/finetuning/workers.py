"""The processes of a run: this one alone, or those that torchrun started."""

import os
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed import all_reduce, destroy_process_group, init_process_group, is_initialized
from torch.nn.parallel import DistributedDataParallel


class Workers:
    """The processes that train one model together, by torch's DistributedDataParallel.

    Attributes:
        count: number of processes.
        rank: number of this one; process 0 writes files and messages.
        connected: after `connect` the module whose backward pass averages the gradients of all processes.
    """

    def __init__(self) -> None:
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.connected: Any = None
        self._device = torch.device("cpu")
        self._is_owner = False

    def device(self, requested: str | int | None) -> str | int | None:
        """Return this process's device: each process of a machine has a CUDA device of its own."""
        has_own = self.count > 1 and torch.cuda.is_available() and requested in (None, "auto", "cuda")
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if has_own else requested

    def connect(self, module: nn.Module) -> None:
        """Connect the processes.

        Args:
            module: trains on this process's device.
        """
        self._device, self.connected = next(module.parameters()).device, module
        if self.count == 1:
            return
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        if not is_initialized():
            init_process_group("nccl" if self._device.type == "cuda" else "gloo")
            self._is_owner = True
        self.connected = DistributedDataParallel(module)

    def total(self, values: Any) -> np.ndarray:
        """Add up the values of all processes, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        if self.count > 1:
            all_reduce(tensor)
        found: np.ndarray = tensor.cpu().numpy()
        return found

    def close(self) -> None:
        """Disconnect the processes."""
        self.connected = None  # before the group: as its last owner it would wait for a thread that waits for the GIL
        if self._is_owner:
            destroy_process_group()
            self._is_owner = False
