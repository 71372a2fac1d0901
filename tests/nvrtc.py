"""NVRTC, NVIDIA's run-time compiler for CUDA C++, which needs no GPU; on PyPI it is nvidia-cuda-nvrtc-cu12."""

import ctypes
from importlib.util import find_spec
from pathlib import Path

MISSING = "NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12"


def find_library() -> Path | None:
    """Find libnvrtc among the installed packages."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so*")):
            return library
    return None


def compile_for(source: str, options: list[str], architecture: str) -> bytes:
    """Compile CUDA C++ to the machine code of an architecture.

    Args:
        source: the text of a .cu file.
        options: -D and others.
        architecture: "sm_80", "sm_90", …

    Returns:
        The cubin.

    Raises:
        RuntimeError: the source does not compile; the message is the compiler's log.
    """
    nvrtc = ctypes.CDLL(str(find_library()))
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"attention.cu", 0, None, None) == 0
    arguments = [option.encode() for option in (f"--gpu-architecture={architecture}", *options)]
    failed = nvrtc.nvrtcCompileProgram(program, len(arguments), (ctypes.c_char_p * len(arguments))(*arguments))

    def text(what: str) -> bytes:
        size = ctypes.c_size_t()
        assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        buffer = ctypes.create_string_buffer(size.value)
        assert getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) == 0
        return buffer.raw

    try:
        if failed:
            raise RuntimeError(text("ProgramLog").decode())
        return text("CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
