"""A replacement of CuPy: strict arrays, and kernels that run on the CPU with tests/emulator."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import emulated
import numpy as np
import scipy.special
from strict_arrays import StrictArray, unwrapped


class RawModule:
    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        self.code, self.options = code, options

    def get_function(self, name: str) -> Any:
        def kernel(grid: tuple[int, int, int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            emulated.launch(self.code, self.options, name, grid, block[0], tuple(map(unwrapped, arguments)))

        return kernel


class Device:
    """A device; without a number, the one that is current in this thread."""

    current = threading.local()

    def __init__(self, id: int | None = None) -> None:
        self.id = getattr(self.current, "id", 0) if id is None else id

    def use(self) -> None:
        self.current.id = self.id


def fake_modules(num_devices: int) -> dict[str, ModuleType]:
    def asarray(array: Any) -> StrictArray:
        return array if isinstance(array, StrictArray) else StrictArray(np.array(array))

    def ascontiguousarray(array: StrictArray) -> StrictArray:
        return StrictArray(np.ascontiguousarray(unwrapped(array)))

    def empty(shape: tuple[int, ...], dtype: Any) -> StrictArray:
        return StrictArray(np.full(shape, np.nan, dtype=dtype))

    cupy: Any = ModuleType("cupy")
    vars(cupy).update(
        __version__="0.0 (fake)",
        asarray=asarray,
        ascontiguousarray=ascontiguousarray,
        asnumpy=lambda array: np.array(unwrapped(array)),
        empty=empty,
        uint8=np.uint8,
        RawModule=RawModule,
    )
    cupy.cuda = ModuleType("cupy.cuda")
    cupy.cuda.is_available = lambda: True
    cupy.cuda.Device = Device
    cupy.cuda.runtime = ModuleType("cupy.cuda.runtime")
    cupy.cuda.runtime.getDeviceCount = lambda: num_devices
    special: Any = ModuleType("cupyx.scipy.special")
    special.erf = lambda x: StrictArray(scipy.special.erf(unwrapped(x)))
    names = ("cupyx", "cupyx.scipy")
    return {"cupy": cupy, "cupyx.scipy.special": special, **{name: ModuleType(name) for name in names}}


@contextmanager
def installed(num_devices: int = 1) -> Iterator[None]:
    """Replace CuPy inside the block; the CuPy backend is imported anew inside it and after it."""
    before = remove_modules()
    sys.modules.update(fake_modules(num_devices))
    try:
        yield
    finally:
        remove_modules()
        sys.modules.update(before)


def remove_modules() -> dict[str, ModuleType]:
    """Remove CuPy and its backend from the loaded modules, and return them."""
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx", "pegasusx_cupy")]
    return {name: sys.modules.pop(name) for name in loaded}
