"""Tensors whose names are known before they are read. [spec 16]"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np


class ReadOnAccess(Mapping[str, np.ndarray]):
    """Tensors by name, each read when it is looked up, by `__getitem__` of a subclass, which also sets the names."""

    _names: Collection[str]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
