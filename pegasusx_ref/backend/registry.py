"""The installed backends, and how to get one. [spec 15]"""

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pegasusx_ref.backend import Backend
from pegasusx_ref.errors import BackendError, reason, shown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "pegasusx_ref.backends"
BUILT_IN = {
    "golden": "pegasusx_ref.backend:GoldenBackend",
    "numpy": "pegasusx_numpy:NumpyBackend",
}
OF_INSTANCES = ("dtype", "device", "compiles")
OF_CLASSES = [name for name in vars(Backend) if not name.startswith("_") and name not in OF_INSTANCES]
SIGNALLED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # the command line raises SystemExit with these at a signal


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
    return {name: _describe(name) for name in backend_names()}


def get_backend(
    name: str = "numpy", device: str | int | None = None, dtype: Any = "float32", **options: Any
) -> Backend:
    """Create a backend. [spec 15.4]

    Args:
        name: one of `available_backends()`; there is no automatic fallback.
        device: "cpu", "cuda:0", or the number of a device; None, "auto" and 0 mean the backend's first one, -1 the CPU.
        dtype: one that the backend declares: "float64", "float32", …, or a NumPy or torch dtype.
        options: of this backend, such as `tf32=True` for torch.

    Raises:
        BackendError: the backend is unknown or broken, does not run on the device, or does not compute in the dtype.
        TypeError: the backend does not have the option.
    """
    backend_class = _load(name)
    if not isinstance(device, str | int | None) and type(device).__name__ != "device":  # torch.device
        raise BackendError(f"device {shown(device)} is not a device: pass a name such as 'cpu', or a number")
    device = "cpu" if isinstance(device, int) and device == -1 else device  # as in transformers
    dtype = dtype_name(dtype)
    if dtype not in backend_class.dtypes:
        others = [other for other in backend_names() if dtype in declared_dtypes(other)]
        remedy = f": choose backend {' or '.join(others)}" if others else ""
        raise BackendError(
            f"backend {name!r} does not compute in {shown(dtype)}: it declares {', '.join(backend_class.dtypes)} "
            f"(weights stored in another dtype are converted on load){remedy}"
        )
    with _foreign_code(f"backend {name!r} cannot be created", (KeyboardInterrupt, TypeError)):
        backend: Backend = backend_class(device=device, dtype=dtype, **options)
        _check_attributes(name, backend, OF_INSTANCES)
    return backend


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype as backends declare it.

    Args:
        dtype: a name, a NumPy dtype or scalar type, or a torch dtype.

    Raises:
        BackendError: it is not a dtype.
    """
    try:
        if isinstance(dtype, type | np.dtype):  # NumPy would read a list of fields too, whatever its size
            return str(np.dtype(dtype).name)
        if isinstance(dtype, str) or type(dtype).__module__ == "torch":
            return str(dtype).removeprefix("torch.")
        raise TypeError
    except Exception:  # of an object's own conversion, too
        raise BackendError(f"dtype {shown(dtype)} is not a known dtype: pass a name such as 'float32'") from None


def _announced() -> dict[str, list["EntryPoint"]]:
    """Find the entry points of each name; a package that is found twice on the path counts once, as for Python."""
    from importlib.metadata import EntryPoint, distributions  # takes as long to import as all of this package's model

    found = {name: [EntryPoint(name, value, ENTRY_POINT_GROUP)] for name, value in BUILT_IN.items()}
    packages = set()
    for distribution in distributions():
        try:
            points = set(distribution.entry_points.select(group=ENTRY_POINT_GROUP))
            package = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower() if points else ""
        except Exception:  # metadata that cannot be read announce nothing
            continue
        if points and package not in packages:
            packages.add(package)
            for point in points:
                found.setdefault(point.name, []).append(point)
    return found


def declared_dtypes(name: str) -> Sequence[str]:
    """Return the dtypes of a backend's class; none if it cannot be loaded."""
    try:
        dtypes: Sequence[str] = _load(name).dtypes
    except BackendError:
        return ()
    return dtypes


def _load(name: str) -> Any:
    """Load the class of a backend and check what it declares."""
    points = _announced().get(name) if isinstance(name, str) else None
    if points is None:
        raise BackendError(
            f"backend {shown(name)} is not installed: available here: {', '.join(backend_names())} "
            f"(packages add others through the entry-point group {ENTRY_POINT_GROUP!r})"
        )
    if len(points) > 1:
        packages = " and ".join(point.dist.name if point.dist else "pegasusx-ref" for point in points)
        raise BackendError(f"backend {name!r} is announced by {packages}: uninstall all but one of them")
    (point,) = points
    with _foreign_code(f"backend {name!r} ({point.value}) cannot be loaded"):
        backend_class = point.load()
        _check_attributes(name, backend_class, OF_CLASSES)
        for attribute in ("name", "version"):
            if not isinstance(value := getattr(backend_class, attribute), str):
                raise BackendError(f"backend {name!r}: {attribute} must be a str, not {shown(value)}")
        _strings(name, "dtypes", backend_class.dtypes)
    return backend_class


def _describe(name: str) -> BackendInfo:
    version, dtypes = "", ()
    try:
        backend_class = _load(name)
        version, dtypes = backend_class.version, tuple(backend_class.dtypes)
        with _foreign_code(f"backend {name!r} cannot list its devices"):
            devices = _strings(name, "devices()", backend_class.devices())
    except BackendError as error:
        return BackendInfo(version, (), dtypes, str(error))
    return BackendInfo(version, devices, dtypes, None)


@contextmanager
def _foreign_code(failure: str, allowed: tuple[type[BaseException], ...] = (KeyboardInterrupt,)) -> Iterator[None]:
    """Raise a BackendError with the reason, whatever the code of another package raises.

    Args:
        failure: what failed, for the message.
        allowed: exceptions that pass.
    """
    try:
        yield
    except allowed:
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in SIGNALLED:
            raise
        if isinstance(error, BackendError):
            raise BackendError(reason(error)) from error
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise BackendError(f"{failure}: {kind}{reason(error)}") from error


def _check_attributes(name: str, backend: Any, attributes: Sequence[str]) -> None:
    if missing := [attribute for attribute in attributes if not hasattr(backend, attribute)]:
        raise BackendError(f"backend {name!r} ({type(backend).__name__}) lacks {', '.join(missing)}")


def _strings(name: str, attribute: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise BackendError(f"backend {name!r}: {attribute} must be a list or tuple of str, not {shown(value)}")
