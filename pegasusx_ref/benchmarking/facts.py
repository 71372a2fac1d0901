"""What the figures depend on besides the code: the machine, the versions, the libraries' threads and settings."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pegasusx_ref
from pegasusx_ref.benchmarking.processes import WorkerError, WorkerProcess

PACKAGES = ("numpy", "scipy", "torch", "transformers", "cupy-cuda12x", "cupy-cuda13x")
STEERING = (
    *("OPENBLAS_", "OMP_", "MKL_", "GOMP_", "KMP_", "BLIS_", "ONEDNN_", "DNNL_", "ATEN_", "NPY_", "NUMPY_"),
    *("PYTORCH_", "TORCH_", "CUDA_", "CUPY_", "NVIDIA_TF32", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"),
)
ASIDE = ("cli", "demo", "reports", "spec", "verification", "study/explore", "study/pictures")  # no figure hangs on them
PRESENTING = tuple(f"benchmarking/{name}.py" for name in ("comparing", "plots", "report", "storing", "table"))


def facts() -> dict[str, Any]:
    """Gather what the figures of a run depend on; two runs are one measurement only where all of it is equal.

    Returns:
        Entries of JSON, in groups: "machine", "versions", "blas", "torch", "environment".
    """
    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": cores(),
            "memory_gib": memory_gib(),
            "os": f"{platform.system()} {platform.release()}",
            "gpu": gpu(),
        },
        "versions": {
            "python": platform.python_version(),
            "pegasusx-ref": pegasusx_ref.__version__,
            "code of pegasusx-ref": digest_of_code(),
        }
        | {package: found for package in PACKAGES if (found := installed(package))},
        "blas": blas(),
        "torch": torch_facts_of_a_worker(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if is_steering(name)},
    }


def is_steering(variable: str) -> bool:
    """Tell whether a variable of the environment steers libraries; one of them threadpoolctl sets by itself."""
    return variable.startswith(STEERING) and variable != "KMP_DUPLICATE_LIB_OK"


def cores() -> int:
    """Count the processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_cores() -> float:
    """Give the load of the last minute: how many programs wanted to run at a time; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def cpu_model() -> str:
    """Name the processor."""
    return linux_entry("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def memory_gib() -> int | None:
    """Give the machine's memory in GiB, None where it is not known."""
    found = linux_entry("/proc/meminfo", "MemTotal")
    return round(int(found.split()[0]) / 2**20) if found else None


def linux_entry(path: str, name: str) -> str:
    """Look up an entry in a table of Linux's /proc; empty where there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


def gpu() -> str:
    """Name NVIDIA's GPUs with driver and memory; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip().replace("\n", "; ") if done.returncode == 0 else ""


def installed(package: str) -> str:
    """Give a package's version; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def blas() -> list[str]:
    """Describe the BLAS that NumPy has loaded: its version, the processor it is tuned for, its threads."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    libraries = [entry for entry in threadpool_info() if entry["user_api"] == "blas"]
    return [
        f"{entry['internal_api']} {entry['version']} for {entry.get('architecture') or 'any processor'}, "
        f"{entry['num_threads']} threads"
        for entry in libraries
    ]


def digest_of_code() -> str:
    """Make a short digest of the code that computes and measures: changed, it is another one, whatever its version."""
    digest = hashlib.sha256()
    for package in ("pegasusx_ref", "pegasusx_numpy", "pegasusx_torch", "pegasusx_cupy"):
        spec = find_spec(package)
        for folder in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cu")]):
                if not path.relative_to(folder).as_posix().startswith((*ASIDE, *PRESENTING)):
                    digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def torch_facts() -> dict[str, Any]:
    """Ask torch, in a process that may load it, what it makes of this machine; empty where it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    found = {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    return found | ({"cuda": torch.version.cuda} if torch.cuda.is_available() else {})


def torch_facts_of_a_worker() -> dict[str, Any]:
    """Have `torch_facts` found out by a worker, as loading torch is not for this process; empty where that fails."""
    try:
        with WorkerProcess({"facts": True}) as worker:
            return worker.facts
    except WorkerError:
        return {}


def differences(then: dict[str, Any], now: dict[str, Any], place: str = "") -> list[str]:
    """Say what of some facts has changed.

    Args:
        then: the older ones.
        now: those of this moment.
        place: where they stand, for a group.

    Returns:
        "numpy: 2.3.0 then, 2.4.0 now" and the like.
    """
    found = []
    for name in sorted({*then, *now}):
        older, newer = then.get(name), now.get(name)
        if isinstance(older, dict) and isinstance(newer, dict):
            found += differences(older, newer, f"{place}{name}: ")
        elif older != newer:
            found.append(f"{place}{name}: {older} then, {newer} now")
    return found
