"""The installed backends, and how to get one. [spec 15]"""

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
    """A description of an installed backend.

    Attributes:
        version: of its array library; empty if it cannot be loaded.
        devices: that are available; empty if it cannot run.
        dtypes: that it computes in.
        problem: why it cannot run here; None if it can.
    """

    version: str
    devices: Sequence[str]
    dtypes: Sequence[str]
    problem: str | None


def backend_names() -> list[str]:
    """List the installed backends without loading them, the golden one first."""
    return [*BUILT_IN, *sorted(_announced().keys() - BUILT_IN.keys())]


def available_backends() -> dict[str, BackendInfo]:
    """Describe every installed backend by name, the golden one first, including those that cannot run. [spec 15.3]"""
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
    """Create a backend. [spec 15.4]

    Args:
        name: one of `available_backends()`; there is no automatic fallback.
        device: "cpu", "cuda:0", or the number of a device; None, "auto" and 0 mean the backend's first one.
        dtype: one that the backend declares: "float64", "float32", …, or a NumPy or torch dtype.
        options: of this backend, such as `tf32=True` for torch.

    Raises:
        BackendError: the backend is unknown, does not run on the device, or does not compute in the dtype.
        TypeError: the backend does not have the option.
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
    """Return the name of a dtype as backends declare it.

    Args:
        dtype: a name, a NumPy dtype or scalar type, or a torch dtype.

    Raises:
        BackendError: it is not a dtype.
    """
    if isinstance(dtype, str) or str(dtype).startswith("torch."):
        return str(dtype).removeprefix("torch.")
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        raise BackendError(f"dtype {dtype!r} is not a known dtype: pass a name such as 'float32'") from None


def _announced() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(name: str) -> Any:
    """Load the class of a backend."""
    point = BUILT_IN.get(name) or _announced().get(name)
    if point is None:
        raise BackendError(
            f"backend {name!r} is not installed: available here: {', '.join(backend_names())} "
            f"(packages add others through the entry-point group {ENTRY_POINT_GROUP!r})"
        )
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise BackendError(f"backend {name!r} ({point.value}) cannot be loaded: {error}") from error
