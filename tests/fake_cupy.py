"""A replacement of CuPy: strict arrays, and kernels that run on the CPU with tests/emulator."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any, ClassVar

import emulated
import numpy as np
import scipy.special
import strict_arrays
from strict_arrays import FakeGraph, StrictArray, unwrapped

from pegasusx_ref.backend.arrays import numpy_dtype

backwards = False  # whether the threads of a thread block run in descending order


class RawModule:
    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        self.code, self.options = code, options

    def get_function(self, name: str) -> Any:
        strict_arrays.not_during_capture("loading a kernel")

        def kernel(grid: tuple[int, int, int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            host_arguments = tuple(map(unwrapped, arguments))
            strict_arrays.noted(
                lambda: emulated.launch(self.code, self.options, name, grid, block[0], host_arguments, backwards)
            )

        return kernel


def in_memory(address: int, size: int, dtype: Any) -> np.ndarray:
    """View numbers at an address."""
    memory: Any = (ctypes.c_char * (size * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)


def gemm_strided_batched(handle: int, *arguments: int) -> None:
    """Multiply stacks of column-major matrices in memory, as cublasGemmStridedBatchedEx is documented."""
    if strict_arrays.capturing is not None:  # as CuPy does
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    a_is_transposed, b_is_transposed, m, n, k, alpha, *operands = arguments
    a, a_type, a_step, a_stride, b, b_type, b_step, b_stride, beta, *result = operands
    c, c_type, c_step, c_stride, count, compute, _ = result
    assert (a_type, compute) in {(0, 68), (0, 77), (1, 70), (2, 68), (14, 68)}
    assert a_type == b_type
    assert c_type in ((1,) if a_type == 1 else (a_type, 0))
    real: Any = np.dtype(np.float64 if compute == 70 else np.float32)

    def matrices(address: int, kind: int, rows: int, columns: int, step: int, stride: int) -> np.ndarray:
        """View memory as matrices (count, rows, columns) whose columns are `step` numbers apart."""
        dtype: Any = numpy_dtype(CUDA_TYPES[kind])
        assert step >= rows, "columns overlap"
        size = (count - 1) * stride + (columns - 1) * step + rows
        memory = in_memory(address, size, dtype)
        steps = tuple(each * dtype.itemsize for each in (stride, 1, step))
        return np.lib.stride_tricks.as_strided(memory, (count, rows, columns), steps)

    def operand(address: int, kind: int, is_transposed: int, rows: int, columns: int, step: int, stride: int) -> Any:
        if is_transposed:
            return matrices(address, kind, columns, rows, step, stride).swapaxes(1, 2).astype(real)
        return matrices(address, kind, rows, columns, step, stride).astype(real)

    alpha, beta = (in_memory(each, 1, real)[0] for each in (alpha, beta))
    left = operand(a, a_type, a_is_transposed, m, k, a_step, a_stride)
    right = operand(b, b_type, b_is_transposed, k, n, b_step, b_stride)
    found = matrices(c, c_type, m, n, c_step, c_stride)
    found[...] = alpha * (left @ right) + (beta * found.astype(real) if beta else 0)


CUDA_TYPES = {0: "float32", 1: "float64", 2: "float16", 14: "bfloat16"}


class Device:
    """A device; without a number, the one that is current in this thread."""

    current = threading.local()
    compute_capability = "90"

    def __init__(self, id: int | None = None) -> None:
        self.id = getattr(self.current, "id", 0) if id is None else id

    def use(self) -> None:
        self.current.id = self.id

    def __enter__(self) -> None:
        self.entered = Device()
        self.use()

    def __exit__(self, *_: Any) -> None:
        self.entered.use()


class Stream:
    """A stream; without a handle, the default one of a thread."""

    stack = threading.local()

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking = non_blocking

    def __enter__(self) -> "Stream":
        self.stack.current = self
        return self

    def __exit__(self, *_: Any) -> None:
        del self.stack.current

    def synchronize(self) -> None:
        strict_arrays.not_during_capture("a synchronization")

    def begin_capture(self) -> None:
        assert self.non_blocking, "cannot capture on the default (legacy) stream"
        assert current_stream() is self, "operations go to another stream"
        strict_arrays.capturing = FakeGraph()

    def end_capture(self) -> FakeGraph:
        graph, strict_arrays.capturing = strict_arrays.capturing, None
        assert graph is not None
        graph.finish()
        return graph


def current_stream() -> Stream:
    return getattr(Stream.stack, "current", None) or Stream()


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        strict_arrays.not_during_capture("recording an event")

    def synchronize(self) -> None:
        strict_arrays.not_during_capture("a synchronization")


class MemoryPool:
    """Allocates nothing, because strict arrays need no memory of a device."""

    num_freed: ClassVar[int] = 0

    def __init__(self, allocator: Any = None) -> None:
        pass

    def malloc(self, size: int) -> None:
        pass

    def set_limit(self, size: int) -> None:
        pass

    def free_all_blocks(self) -> None:
        strict_arrays.not_during_capture("freeing memory")
        MemoryPool.num_freed += 1


def fake_modules(num_devices: int) -> dict[str, ModuleType]:
    def array(array: Any, dtype: Any) -> StrictArray:
        if not isinstance(array, StrictArray):
            return asarray(np.array(array, dtype))
        on_host = unwrapped(array)
        return StrictArray(strict_arrays.noted(lambda: np.array(on_host, dtype), on_host))

    def asarray(array: Any) -> StrictArray:
        if isinstance(array, StrictArray):
            return array
        strict_arrays.not_during_capture("a copy from the host")
        return StrictArray(np.array(array))

    def asnumpy(array: StrictArray) -> np.ndarray:
        strict_arrays.not_during_capture("a copy to the host")
        return np.array(unwrapped(array))

    def ascontiguousarray(array: StrictArray) -> StrictArray:
        on_host = unwrapped(array)
        return StrictArray(strict_arrays.noted(lambda: np.ascontiguousarray(on_host), on_host))

    def empty(shape: tuple[int, ...], dtype: Any) -> StrictArray:
        new = np.full(shape, np.nan, dtype=dtype)
        if strict_arrays.capturing is not None:
            strict_arrays.capturing.new.append(new)
        return StrictArray(new)

    def erf(x: StrictArray) -> StrictArray:
        on_host = unwrapped(x)
        return StrictArray(strict_arrays.noted(lambda: scipy.special.erf(on_host), on_host))

    cupy: Any = ModuleType("cupy")
    vars(cupy).update(
        __version__="0.0 (fake)",
        array=array,
        asarray=asarray,
        ascontiguousarray=ascontiguousarray,
        asnumpy=asnumpy,
        empty=empty,
        uint8=np.uint8,
        RawModule=RawModule,
        get_default_memory_pool=lambda: MemoryPool(),
    )
    cupy.cuda = ModuleType("cupy.cuda")
    cupy.cuda.is_available = lambda: True
    cupy.cuda.Device = Device
    cupy.cuda.Stream = Stream
    cupy.cuda.get_current_stream = current_stream
    cupy.cuda.Event = Event
    cupy.cuda.MemoryPool = MemoryPool
    cupy.cuda.using_allocator = nullcontext
    cupy.cuda.runtime = ModuleType("cupy.cuda.runtime")
    cupy.cuda.runtime.getDeviceCount = lambda: num_devices
    cupy.cuda.cublas = ModuleType("cupy.cuda.cublas")
    cupy.cuda.cublas.gemmStridedBatchedEx = gemm_strided_batched
    cupy.cuda.device = ModuleType("cupy.cuda.device")
    cupy.cuda.device.get_cublas_handle = lambda: 0
    special: Any = ModuleType("cupyx.scipy.special")
    special.erf = erf
    names = ("cupyx", "cupyx.scipy")
    submodules = {"cupy.cuda": cupy.cuda, "cupy.cuda.cublas": cupy.cuda.cublas, "cupy.cuda.device": cupy.cuda.device}
    return submodules | {"cupy": cupy, "cupyx.scipy.special": special, **{name: ModuleType(name) for name in names}}


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
