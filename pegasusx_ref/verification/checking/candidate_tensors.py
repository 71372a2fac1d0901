"""A candidate's tensors, read on access. [spec 16]"""

from collections.abc import Mapping, Sequence

import numpy as np

from pegasusx_ref.backend.arrays import to_numpy
from pegasusx_ref.errors import InputError
from pegasusx_ref.files.reading import reading
from pegasusx_ref.verification.candidates.mapped_tensors import MappedTensors, OtherBlocks
from pegasusx_ref.verification.candidates.read_on_access import ReadOnAccess


class CandidateTensors(ReadOnAccess):
    """A candidate's tensors in float64, each read on access.

    Args:
        tensors: by trace-point name.
        max_size: elements of the largest tensor of this run; larger ones are not read from a file.
        rows: of the batch; None means all.

    Attributes:
        notes: on tensors that were read, by name: why they have no array of their own, or that they hold integers.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], max_size: int, rows: Sequence[int] | None = None) -> None:
        self._tensors, self._max_size, self._rows = tensors, max_size, rows
        self._names = tensors
        self.notes: dict[str, str] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            raise KeyError(name)
        try:
            return self._read(name)
        except OtherBlocks as error:
            self.notes[name] = str(error).removeprefix(f"{name}: ")
            return np.empty(0)

    def _read(self, name: str) -> np.ndarray:
        if isinstance(self._tensors, MappedTensors):
            self._tensors.check_size(name, self._max_size)
        with reading(f"tensor {name!r}", "an array", InputError):
            raw = to_numpy(self._tensors[name])
        if raw.dtype.kind not in "biuf" and raw.dtype.name != "bfloat16":
            raise InputError(f"tensor {name!r} has dtype {raw.dtype}: expected real numbers")
        if raw.dtype.kind in "biu":
            self.notes[name] = f"its dtype is {raw.dtype}"
        if self._rows is not None and raw.ndim and len(raw) > max(self._rows):
            raw = raw[self._rows]  # of any other shape, it is reported as it is
        return np.asarray(raw, dtype=np.float64)
