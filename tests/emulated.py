"""Run CUDA kernels on the CPU: compiled by g++ with tests/emulator, launched on NumPy arrays."""

import ctypes
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

EMULATOR = Path(__file__).parent / "emulator"
PTX = Path(__file__).parents[1] / "backends" / "pegasusx_cupy" / "ptx.cuh"
COMPILER = shutil.which("g++")
NO_COMPILER = "g++ is not installed: it is needed to compile the CUDA kernels for the CPU"


@cache
def library(source: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """Compile kernels.

    Args:
        source: CUDA C++ without #include; the text of ptx.cuh in it is replaced by that of the emulator.
        options: -D options, as for NVRTC; --fmad=true, NVRTC's default, lets the compiler fuse products with additions.
    """
    folder = Path(tempfile.mkdtemp(prefix="pegasusx-emulator-"))
    emulated = source.replace(PTX.read_text(encoding="utf-8"), (EMULATOR / "ptx.cuh").read_text(encoding="utf-8"))
    (folder / "kernels.cu").write_text(emulated, encoding="utf-8")
    names = re.findall(r"__global__ void (\w+)\(", source)
    defines = [option for option in options if option.startswith("-D")]
    # Most kernels run for a shorter time than the compiler; it fuses from -O2 on.
    fused = ["-O2", "-ffp-contract=fast", "-mfma"] if "--fmad=true" in options else ["-O1", "-ffp-contract=off"]
    command = [str(COMPILER), "-std=c++17", *fused, "-fPIC", "-shared", "-Wno-unknown-pragmas"]
    command += [*defines, "-DEACH_KERNEL=" + " ".join(f"KERNEL({name})" for name in names)]
    command += [f'-DKERNELS="{folder / "kernels.cu"}"', "-I", str(EMULATOR)]
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
    """Run a kernel with the arguments that CuPy passes: arrays, and NumPy's scalars of the parameters' types."""
    values = [
        np.array(each.__array_interface__["data"][0] if isinstance(each, np.ndarray) else each) for each in arguments
    ]
    assert all(each.flags.c_contiguous for each in arguments if isinstance(each, np.ndarray))
    assert all(number > 0 for number in grid), "CUDA refuses an empty grid"
    assert max(grid[1:]) <= 65535, "CUDA refuses more thread blocks in y and z"
    assert not any(type(each) in (int, float) for each in arguments), "a Python number has no size in memory"
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    unknown = library(source, options).launch(
        name.encode(), pointers, (ctypes.c_int * 3)(*grid), ctypes.c_int(num_threads), ctypes.c_int(backwards)
    )
    assert not unknown, f"there is no kernel {name}"
