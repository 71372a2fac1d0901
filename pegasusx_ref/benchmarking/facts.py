"""What the measurements depend on: the machine, the versions and the code, the settings of libraries."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

import pegasusx_ref
from pegasusx_ref.benchmarking.workers import Worker, WorkerError

PACKAGES = ("numpy", "scipy", "torch", "transformers", "cupy-cuda12x", "cupy-cuda13x")
LIBRARY_VARIABLES = (
    *("OPENBLAS_", "OMP_", "MKL_", "GOMP_", "KMP_", "BLIS_", "ONEDNN_", "DNNL_", "ATEN_", "NPY_", "NUMPY_"),
    *("PYTORCH_", "TORCH_", "CUDA_", "CUPY_", "NVIDIA_TF32", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"),
)
IRRELEVANT = (  # code that no measurement depends on
    *("cli/", "demo/", "rendering/", "spec/", "verification/", "study/explore/", "study/pictures/"),
    *("benchmarking/plots.py", "benchmarking/report.py", "benchmarking/storage.py"),
)


def facts() -> dict[str, Any]:
    """Collect what the measurements depend on; runs may share a file only if all of it is equal.

    Returns:
        Entries for JSON in the groups "machine", "versions", "blas", "torch", "environment".
    """
    versions = {"python": platform.python_version(), "pegasusx-ref": pegasusx_ref.__version__}
    versions["code of pegasusx-ref"] = code_digest()
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    memory = linux_entry("/proc/meminfo", "MemTotal").split()
    torch: dict[str, Any] = {}
    with suppress(WorkerError), closing(Worker(torch_probe)) as worker:
        torch = worker.run()
    return {
        "machine": {
            "cpu": linux_entry("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
            "cores": usable_cores(),
            "memory_gib": round(int(memory[0]) / 2**20) if memory else None,
            "os": f"{platform.system()} {platform.release()}",
            "gpu": gpu_names(),
        },
        "versions": versions,
        "blas": [
            f"{library['internal_api']} {library['version']} for {library.get('architecture') or 'any processor'}, "
            f"{library['num_threads']} threads"
            for library in threadpool_info()
            if library["user_api"] == "blas"
        ],
        "torch": torch,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(LIBRARY_VARIABLES) and name != "KMP_DUPLICATE_LIB_OK"  # threadpoolctl sets that one
        },
    }


def usable_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float:
    """Return the load of the last minute; 0 on systems that do not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def linux_entry(path: str, name: str) -> str:
    """Read an entry of a table in Linux's /proc; empty where there is none."""
    with suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def gpu_names() -> str:
    """Name NVIDIA's GPUs with driver and memory; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    with suppress(OSError):
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip().replace("\n", "; ")
    return ""


def code_digest() -> str:
    """Return a short digest of the code that computes and measures, which changes between releases too."""
    digest = hashlib.sha256()
    for package in ("pegasusx_ref", "pegasusx_numpy", "pegasusx_torch", "pegasusx_cupy"):
        spec = find_spec(package)
        for folder in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cu*")]):
                if not path.relative_to(folder).as_posix().startswith(IRRELEVANT):
                    digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def torch_probe() -> Callable[[], dict[str, Any]]:
    """Prepare reading torch's view of the machine, in a worker: this process never loads torch."""
    try:
        import torch
    except ImportError:
        return dict
    found = {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return lambda: found


def differences(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """List entries that differ, as in "versions: numpy: 2.3.0 then, 2.4.0 now".

    Args:
        then: earlier facts or settings.
        now: current ones.
        prefix: names the group that contains both.
    """
    found = []
    for name in sorted({*then, *now}):
        older, newer = then.get(name), now.get(name)
        if isinstance(older, dict) and isinstance(newer, dict):
            found += differences(older, newer, f"{prefix}{name}: ")
        elif older != newer:
            found.append(f"{prefix}{name}: {older} then, {newer} now")
    return found
