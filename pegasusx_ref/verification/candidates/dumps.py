"""A candidate's tensors from a file. [spec 16]"""

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from weakref import finalize
from zipfile import ZIP_DEFLATED, ZIP_STORED

import numpy as np

from pegasusx_ref.checkpoint.safetensors_file import INTEGERS, WEIGHTS, read_safetensors
from pegasusx_ref.errors import CheckpointError, InputError, shown
from pegasusx_ref.files.reading import as_path, reading
from pegasusx_ref.files.zip_files import open_zip
from pegasusx_ref.model.config import PegasusXConfig
from pegasusx_ref.verification.candidates.inputs import Inputs
from pegasusx_ref.verification.candidates.mapping import map_names
from pegasusx_ref.verification.candidates.name_maps import NameMap
from pegasusx_ref.verification.candidates.read_on_access import ReadOnAccess

COMPRESSIONS = (ZIP_STORED, ZIP_DEFLATED)  # those of NumPy
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzFile(ReadOnAccess):
    """The tensors of an npz file, which stays open as long as this object lives.

    Shapes and dtypes are known before a tensor is read, and nothing is read that the file has no room for.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as stack:
            self._archive = stack.enter_context(open_zip(path, COMPRESSIONS))
            self._names = self._members = {name.removesuffix(".npy"): name for name in self._archive.namelist()}
            finalize(self, stack.pop_all().close)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, from its header."""
        member = self._archive.getinfo(self._members[name])
        with self._reading(name), self._archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in NPY_HEADERS:
                raise ValueError(f"its npy version is {version}")
            shape, _, dtype = NPY_HEADERS[version](file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects: save an array of numbers")
            if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                raise ValueError(f"its dtype {dtype} and shape {shape} do not fit its size")
            return tuple(shape)

    def __getitem__(self, name: str) -> np.ndarray:
        self.shape_of(name)  # checks the size that is about to be allocated
        with self._reading(name), self._archive.open(self._members[name]) as file:
            tensor: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            return tensor

    def _reading(self, name: str) -> AbstractContextManager[None]:
        return reading(f"{self._path}: tensor {shown(name)}", "readable", InputError)


def from_dump(
    path: str | Path,
    mapping: NameMap | None = None,
    config: PegasusXConfig | None = None,
    inputs: Inputs | None = None,
) -> Mapping[str, np.ndarray]:
    """Read a candidate's tensors from a file. [spec 16.16]

    Args:
        path: a .safetensors or .npz file. Tensors may be missing. The file may also hold input_ids, decoder_input_ids
            and their masks; masks belong in it wherever the run has them.
        mapping: a TOML file, its content, or "transformers" or "flax" for a mapping that comes with this package.
            Its lines are ours = theirs, or ours = {name = theirs, STEP = …, …}, with the steps in the order in which
            they are written; {i} and {n} stand for any layer and block; of a list of lines the first that matches is
            used. Tensors that it does not name keep their names. None where the names are those of the trace points.
        config: the model's configuration, for mappings that name its sizes or have padding or blocks.
        inputs: of the run, where the file does not hold them.

    Returns:
        The tensors by trace-point name, each read on access.

    Raises:
        InputError: a missing file, another format, or a mapping that does not fit the file.
    """
    path = as_path(path)
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; a dump is a .safetensors or .npz file")
    if path.suffix == ".npz":
        with reading(path, "an npz file", InputError):
            npz = NpzFile(path)
        return map_names(npz, mapping, config, inputs)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a dump is a .safetensors or .npz file, not {path.suffix or 'without a suffix'}")
    try:
        tensors, _ = read_safetensors(path, WEIGHTS | INTEGERS)
    except CheckpointError as error:
        raise InputError(str(error)) from None
    return map_names(tensors, mapping, config, inputs)
