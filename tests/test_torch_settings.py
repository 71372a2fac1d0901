"""Settings of the process that the torch backend changes or leaves alone, and what it makes of any array."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Barrier, Thread
from time import sleep
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")


def in_threads(work: Any, arguments: list[Any]) -> None:
    threads = [Thread(target=work, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_each_thread_has_its_tf32_setting() -> None:
    from pegasusx_torch.precision import allow_tf32

    settings, seen, start = torch.backends.cuda.matmul, [], Barrier(4)
    before = settings.fp32_precision

    def work(is_allowed: bool) -> None:
        start.wait()
        for _ in range(10):
            with allow_tf32(is_allowed, CUDA):
                sleep(1e-4)
                with allow_tf32(not is_allowed, CUDA):  # a listener may run another model
                    sleep(1e-4)
                seen.append((settings.fp32_precision == "tf32") == is_allowed)

    in_threads(work, [True, False, True, False])
    assert seen == 40 * [True]
    assert settings.fp32_precision == before


def test_the_tf32_setting_is_left_alone_on_a_cpu() -> None:
    from pegasusx_torch.precision import allow_tf32

    before = torch.backends.cuda.matmul.fp32_precision
    with allow_tf32(before != "tf32", CPU):
        assert torch.backends.cuda.matmul.fp32_precision == before


PROGRAM = """
import sys
import torch
from pegasusx_torch.precision import allow_tf32

def read(setting):
    try:
        return setting()
    except RuntimeError:
        return "an error"

def state():
    settings = torch.backends.cuda.matmul
    found = [settings.fp32_precision, torch.backends.fp32_precision]
    return [*found, read(lambda: settings.allow_tf32), read(torch.get_float32_matmul_precision)]

exec(sys.argv[1])
before = state()
for is_allowed in (True, False):
    with allow_tf32(is_allowed, torch.device("cuda:0")):
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == is_allowed
    assert state() == before, (state(), before)
print(before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        "pass",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_a_program_s_own_tf32_setting_is_restored(setting: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("tf32" in done.stdout) is (setting != "pass")


@pytest.mark.slow
def test_one_thread_at_a_time_captures_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs have this limit, and torch captures all of them on one stream."""
    import fake_cuda_graphs
    from pegasusx_torch.cuda_graph import CudaGraphStep

    record, capturing = fake_cuda_graphs.record, threading.Lock()

    @contextmanager
    def record_alone(*arguments: Any, **options: Any) -> Iterator[None]:
        assert capturing.acquire(blocking=False), "two captures at the same time"
        with record(*arguments, **options):
            sleep(1e-3)
            yield
        capturing.release()

    for name, replacement in (fake_cuda_graphs.REPLACED | {"graph": record_alone}).items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    results = []

    def work(number: int) -> None:
        results.append(CudaGraphStep(lambda x: 2 * x, CPU)(torch.full((3,), float(number))).tolist())

    in_threads(work, list(range(4)))
    assert sorted(results) == [3 * [0.0], 3 * [2.0], 3 * [4.0], 3 * [6.0]]


ARRAYS: dict[str, Any] = {
    "contiguous": lambda x: x,
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "transposed": lambda x: x.T,
    "backwards": lambda x: x[::-1, ::-1],
    "with gaps": lambda x: x[:, ::2],
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape),
    "vector": lambda x: x[0],
    "without axes": lambda x: x[0, 0, ...],
    "empty": lambda x: x[:0],
    "unaligned": lambda x: np.frombuffer(b" " + x.tobytes(), np.uint8)[1:].view(x.dtype),
}


@pytest.mark.parametrize(
    "stored", ["<f8", ">f8", "<f4", ">f4", "<f2", ">f2", "longdouble", ml_dtypes.bfloat16], ids=str
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_any_floating_point_array_becomes_a_tensor(dtype: str, stored: Any) -> None:
    """Without a warning, which pytest would make an error, and without changing the filters of warnings."""
    from pegasusx_torch import TorchBackend

    ops = TorchBackend("cpu", dtype)
    for kind, laid_out in ARRAYS.items():
        array = laid_out(np.arange(24).reshape(4, 6).astype(stored))
        tensor = ops.asarray(array)
        assert tensor.dtype == getattr(torch, "float32" if array.ndim == 1 and "16" in dtype else dtype), kind
        assert (ops.to_numpy(tensor) == array.astype(np.float64)).all(), kind


def test_weights_are_not_copied_and_stay_alive() -> None:
    from pegasusx_torch import TorchBackend

    array = np.broadcast_to(np.ones((300, 400), np.float32), (300, 400))
    references, address = sys.getrefcount(array), array.ctypes.data
    tensor = TorchBackend("cpu").asarray(array)
    assert tensor.data_ptr() == address
    assert sys.getrefcount(array) == references + 1
    del tensor
    assert sys.getrefcount(array) == references


def test_filters_of_warnings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`warnings.catch_warnings` restores them, and with them what another thread has changed meanwhile."""
    import warnings

    from pegasusx_torch import TorchBackend

    monkeypatch.setattr(warnings, "catch_warnings", None)
    TorchBackend("cpu").asarray(np.broadcast_to(np.float32(1), (2, 2)))
