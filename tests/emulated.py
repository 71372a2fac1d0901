"""Run attention.cu on the CPU: compiled by g++ with tests/emulator, launched on NumPy arrays."""

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

EMULATOR = Path(__file__).parent / "emulator"
COMPILER = shutil.which("g++")
NO_COMPILER = "g++ is not installed: it is needed to compile the CUDA kernels for the CPU"


@cache
def library(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """Compile the kernels.

    Args:
        source: the text of attention.cu.
        options: -D options, as for NVRTC.
    """
    folder = Path(tempfile.mkdtemp(prefix="pegasusx-emulator-"))
    (folder / "kernels.cu").write_text(source, encoding="utf-8")
    defines = [option for option in options if option.startswith("-D")]
    command = [str(COMPILER), "-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
    command += ["-U_FORTIFY_SOURCE"]  # its longjmp refuses to change stacks
    command += [*defines, f'-DKERNELS="{folder / "kernels.cu"}"', "-I", str(EMULATOR)]
    command += [str(EMULATOR / "launch.cpp"), "-o", str(folder / "kernels.so")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "kernels.so"))


def launch(
    source: str,
    options: tuple[str, ...],
    name: str,
    grid: tuple[int, int, int],
    num_threads: int,
    arguments: tuple[Any, ...],
    backwards: bool = False,
) -> None:
    """Run a kernel with the arguments that CuPy passes: five arrays, the mask, the result, sizes."""
    *arrays, mask, result = arguments[:7]
    sizes = (ctypes.c_int * len(arguments[7:]))(*(int(size) for size in arguments[7:]))
    assert all(isinstance(array, np.ndarray) and array.flags.c_contiguous for array in (*arrays, result))
    assert isinstance(mask, np.ndarray) or int(mask) == 0
    pointers = (ctypes.c_void_p * 5)(*(array.ctypes.data for array in arrays))
    mask_pointer = ctypes.c_void_p(mask.ctypes.data if isinstance(mask, np.ndarray) else None)
    library(source, options).launch(
        ctypes.c_int(name == "local_attention"),
        pointers,
        mask_pointer,
        ctypes.c_void_p(result.ctypes.data),
        sizes,
        (ctypes.c_int * 3)(*grid),
        ctypes.c_int(num_threads),
        ctypes.c_int(backwards),
    )
