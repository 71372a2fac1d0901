"""Which backends there are, and how to get one. [spec 15]"""

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

import numpy as np

from pegasusx_ref.backend import Backend
from pegasusx_ref.errors import BackendError

ENTRY_POINT_GROUP = "pegasusx_ref.backends"
BUILT_IN = {
    "golden": EntryPoint("golden", "pegasusx_ref.backend:GoldenBackend", ENTRY_POINT_GROUP),
    "numpy": EntryPoint("numpy", "pegasusx_numpy:NumpyBackend", ENTRY_POINT_GROUP),
}


class BackendInfo(NamedTuple):
    """What is known of an installed backend.

    Attributes:
        version: of its array library; empty where it cannot be loaded.
        devices: what it finds here; none where it cannot run.
        dtypes: what it computes in.
        problem: why it cannot run here; None where it can.
    """

    version: str
    devices: Sequence[str]
    dtypes: Sequence[str]
    problem: str | None


def backend_names() -> list[str]:
    """Name the installed backends without loading them, the golden one first."""
    return [*BUILT_IN, *sorted(_announced().keys() - BUILT_IN.keys())]


def available_backends() -> dict[str, BackendInfo]:
    """Describe every installed backend by name, the golden one first, also those that cannot run here. [spec 15.3]"""
    found = {}
    for name in backend_names():
        try:
            backend_class = _load(name)
        except BackendError as error:
            found[name] = BackendInfo("", (), (), str(error))
            continue
        devices, problem = (), None
        try:
            devices = tuple(backend_class.devices())
        except BackendError as error:
            problem = str(error)
        found[name] = BackendInfo(backend_class.version, devices, tuple(backend_class.dtypes), problem)
    return found


def get_backend(
    name: str = "numpy", device: str | int | None = None, dtype: Any = "float32", **options: Any
) -> Backend:
    """Make a backend ready to compute. [spec 15.4]

    Args:
        name: one of `available_backends()`; nothing is ever chosen in its place.
        device: "cpu", "cuda:0", or a number among the backend's devices; None, "auto" and 0 are its first one.
        dtype: what it computes in, as the backend declares: "float64", "float32", …, or NumPy's or torch's own.
        options: of the backend itself, such as `tf32=True` for torch.

    Raises:
        BackendError: an unknown backend, a device that it does not run on, or a dtype that it does not compute in.
        TypeError: an option that the backend does not have.
    """
    backend_class = _load(name)
    dtype = dtype_name(dtype)
    if dtype not in backend_class.dtypes:
        raise BackendError(
            f"backend {name!r} does not compute in {dtype!r}: it declares {', '.join(backend_class.dtypes)} "
            "(weights stored in another dtype are converted on load)"
        )
    backend: Backend = backend_class(device=device, dtype=dtype, **options)
    return backend


def dtype_name(dtype: Any) -> str:
    """Spell a dtype as backends do.

    Args:
        dtype: a name, a NumPy dtype or scalar type, or a torch dtype.

    Raises:
        BackendError: it is none of these.
    """
    if isinstance(dtype, str) or str(dtype).startswith("torch."):
        return str(dtype).removeprefix("torch.")
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        raise BackendError(f"dtype {dtype!r} is none: pass a name such as 'float32'") from None


def _announced() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(name: str) -> Any:
    """Load the class of a backend."""
    point = BUILT_IN.get(name) or _announced().get(name)
    if point is None:
        raise BackendError(
            f"backend {name!r} is not installed: available here: {', '.join(backend_names())} "
            f"(others are found by the entry-point group {ENTRY_POINT_GROUP!r})"
        )
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise BackendError(f"backend {name!r} ({point.value}) cannot be loaded: {error}") from error
