"""NVRTC, NVIDIA's run-time compiler for CUDA C++, which needs no GPU; on PyPI it is nvidia-cuda-nvrtc-cu12."""

import ctypes
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

REGISTERS, STACK = 0x2F, 0x11  # EIATTR_REGCOUNT and EIATTR_FRAME_SIZE of a kernel in .nv.info
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


class Resources(NamedTuple):
    """What a thread of a kernel, or a thread block, occupies.

    Attributes:
        registers: of a thread.
        shared: bytes of a thread block.
        stack: bytes of a thread in memory: what does not fit into registers.
    """

    registers: int
    shared: int
    stack: int


def resources(cubin: bytes) -> dict[str, Resources]:
    """Read the resources of each kernel from machine code: an ELF file, with NVIDIA's section .nv.info."""
    offset, size, count, names_index = struct.unpack_from("<Q", cubin, 0x28) + struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]

    def text(section: tuple[int, ...], at: int) -> str:
        start = section[4] + at
        return cubin[start : cubin.index(b"\0", start)].decode()

    by_name = {text(sections[names_index], section[0]): section for section in sections}
    symbols, strings = by_name[".symtab"], by_name[".strtab"]
    names = [text(strings, struct.unpack_from("<I", cubin, symbols[4] + 24 * i)[0]) for i in range(symbols[5] // 24)]
    found: dict[tuple[int, str], int] = {}
    at, end = by_name[".nv.info"][4], by_name[".nv.info"][4] + by_name[".nv.info"][5]
    while at < end:  # entries: a format, an attribute, and a number or the size of what follows
        form, attribute, length = struct.unpack_from("<BBH", cubin, at)
        if form == 4:
            if attribute in (REGISTERS, STACK):
                symbol, value = struct.unpack_from("<II", cubin, at + 4)
                found[attribute, names[symbol]] = value
            at += length
        at += 4
    kernels = [name.removeprefix(".text.") for name in by_name if name.startswith(".text.")]
    return {
        name: Resources(found[REGISTERS, name], by_name.get(f".nv.shared.{name}", (0,) * 6)[5], found[STACK, name])
        for name in kernels
    }
