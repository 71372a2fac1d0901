"""What a file is that should be another one: a pointer, a web page, an archive, half a download."""

import zipfile
from typing import IO

HEAD_SIZE = 512  # bytes
AGAIN = "download or copy it again"
# How a file begins, and what it is: no reader of this package takes such a file.
KINDS = (
    (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer to the real file: run `git lfs pull`, or "
     "download the file itself"),
    (b"<!doctype", f"a web page, as a failed download leaves it: {AGAIN}"),
    (b"<html", f"a web page, as a failed download leaves it: {AGAIN}"),
    (b"<?xml", f"an XML page, as a failed download leaves it: {AGAIN}"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"bzh", "a bzip2 archive: unpack it"),
    (b"\xfd7zxz", "an xz archive: unpack it"),
    (b"gguf", "a GGUF file of llama.cpp, which has no PEGASUS-X: use the safetensors file"),
    (b"\x89hdf", "HDF5, the format of TensorFlow weights: save the model with transformers as safetensors"),
)  # fmt: skip
TAR = (257, b"ustar")  # offset and mark of a tar archive


def recognized(file: IO[bytes], name: str) -> str | None:
    """Recognize a file that a reader could not parse.

    Args:
        file: open, at its start.
        name: of the file.

    Returns:
        What it is and what to do about it; None where nothing is known.
    """
    head = file.read(HEAD_SIZE)
    if head is None:  # a file of the kernel that waits for data
        return None
    if not head:
        return f"it is empty: {AGAIN}"
    if not head.strip(b"\0"):
        return f"it begins with zeros, as a broken download does: {AGAIN}"
    if head.startswith(b"PK\x03\x04"):
        return None if zipfile.is_zipfile(file) else f"its end is missing: {AGAIN}"
    if head[TAR[0] :].startswith(TAR[1]):
        return "it is a tar archive: unpack it"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"{") and not name.endswith(".json"):
        return f"it is JSON text, as a server answers with an error: {AGAIN}"
    kind = next((kind for start, kind in KINDS if text.lower().startswith(start)), None)
    return None if kind is None else f"it is {kind}"
