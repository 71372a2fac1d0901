"""The golden functions with sums in another order: correct implementations that differ in rounding."""

from typing import Any

import numpy as np

from pegasusx_ref.backend import GoldenBackend


class Reordered(np.ndarray):
    """An array whose products are sums of pieces in reverse order, and whose rows are summed in reverse order."""

    piece = 1

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Reordered) else x for x in inputs]
        if ufunc is np.matmul:
            x, y = plain
            starts = range(0, x.shape[-1], self.piece)[::-1]
            result = sum(x[..., i : i + self.piece] @ y[..., i : i + self.piece, :] for i in starts)
        elif ufunc is np.add and method == "reduce":
            result = np.add.reduce(plain[0][..., ::-1], **kwargs)
        else:
            if out is not None:
                kwargs["out"] = tuple(x.view(np.ndarray) for x in out)
            result = getattr(ufunc, method)(*plain, **kwargs)
        return result.view(type(self)) if isinstance(result, np.ndarray) else result


class ByThrees(Reordered):
    """Sums of pieces of three terms."""

    piece = 3


class InAnotherOrder(GoldenBackend):
    """The golden functions on arrays that sum in another order."""

    def __init__(self, kind: type[Reordered]) -> None:
        super().__init__("cpu", "float32")
        self._kind = kind

    def asarray(self, array: np.ndarray) -> np.ndarray:
        return super().asarray(array).view(self._kind)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array.view(np.ndarray)
