"""Loading a checkpoint and reading every number in it: memory that is only mapped is not read yet."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.backend.registry import get_backend
from pegasusx_ref.benchmarking.cases import THEIRS, Case
from pegasusx_ref.benchmarking.models import their_libraries
from pegasusx_ref.benchmarking.timing import timed, waiter
from pegasusx_ref.model import PegasusXForConditionalGeneration


@contextmanager
def checkpoint_of(case: Case) -> Iterator[Path]:
    """Write a checkpoint of the case's shape with random weights into a folder that goes when the block ends."""
    with TemporaryDirectory(prefix="pegasusx-ref-bench-") as folder:
        PegasusXForConditionalGeneration.from_random(case.config).save_pretrained(folder)
        yield Path(folder)


def load_task(case: Case, implementation: str, device: str, folder: Path) -> Callable[[int], float]:
    """Make a loader ready; see `task_of`. The number of source tokens means nothing to it."""
    read = reader_of(case, implementation, device, folder)
    wait = waiter(implementation, device)
    return lambda _: timed(read, wait)


def reader_of(case: Case, implementation: str, device: str, folder: Path) -> Callable[[], float]:
    """Make a function that loads the checkpoint and gives the sum of all its numbers.

    Args:
        case: for the dtype.
        implementation: who loads.
        device: where to.
        folder: the checkpoint.

    Raises:
        PegasusXError: the implementation cannot run here.
    """
    if implementation == THEIRS:
        torch, transformers = their_libraries()

        def read_theirs() -> float:
            dtype = getattr(torch, case.dtype)
            with torch.inference_mode():
                model = transformers.PegasusXForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device)
                return total(model.parameters())

        return read_theirs
    get_backend(implementation, device, case.dtype)  # whether it can run is known now, and its library loaded

    def read_ours() -> float:
        settings: dict[str, Any] = {"backend": implementation, "device": device, "dtype": case.dtype}
        model = PegasusXForConditionalGeneration.from_pretrained(folder, **settings)
        return total({id(tensor): tensor for tensor in model.weights.values()}.values())  # tied ones once

    return read_ours


def total(tensors: Any) -> float:
    """Add up all numbers of some tensors, by NumPy whosever they are: what is compared is the loading."""
    return sum(float(to_numpy(tensor).sum(dtype=np.float32)) for tensor in tensors)
