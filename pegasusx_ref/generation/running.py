"""The model, as a search calls it step by step: sources that are done leave, and logits are finite. [spec 12]"""

from collections.abc import Callable

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.errors import NumericsError
from pegasusx_ref.generation.history import NextLogits

Keep = Callable[[np.ndarray], None]
LEAVING = 0.25  # of the sources of a batch; what remains is copied, which costs about as much as a step


class RunningModel:
    """The model over the sources that are not done yet, step by step.

    Args:
        next_logits: the model.
        batch_size: B.
        ops: the backend of the logits.
        keep: called with the places, in the batch at that time, of the sources that the model goes on with; None if all
            must stay until the end.

    Attributes:
        sources: the numbers of the sources that the next call computes, in order.
    """

    def __init__(self, next_logits: NextLogits, batch_size: int, ops: Backend, keep: Keep | None = None) -> None:
        self._next_logits, self._ops, self._keep = next_logits, ops, keep
        self.sources = np.arange(batch_size)
        self._step = 0

    def __call__(self, ids_BL: np.ndarray, visible: np.ndarray | None) -> Array:
        """Compute the next logits (B, L, V) in float32, in new memory; arguments as for `NextLogits`."""
        self._step += 1
        self._logits_BLV = self._next_logits(ids_BL, visible)
        scores_BLV = self._ops.to_float32(self._logits_BLV)
        self._range = scores_BLV.max() - scores_BLV.min()  # on the device; not finite if a logit is not
        return scores_BLV

    def check(self, ended_BL: np.ndarray) -> None:
        """Check the logits of this step; call it after the device has computed the step, so that nobody waits for it.

        Args:
            ended_BL: True for rows, of all sources, whose text has ended (B, L), or (B, 1): their logits do not matter.

        Raises:
            NumericsError: a logit of another row is NaN or infinite: it would pass every comparison of a search.
        """
        if np.isfinite(self._ops.to_numpy(self._range)):
            return
        logits_BLV = self._ops.to_numpy(self._ops.to_float32(self._logits_BLV))
        broken_BL = ~np.isfinite(logits_BLV).all(axis=2) & ~ended_BL[self.sources]
        if broken_BL.any():
            rows = self.sources[broken_BL.any(axis=1)].tolist()
            raise NumericsError(
                f"the logits of token {self._step} are not finite in rows {rows} of the batch (of {len(ended_BL)})"
            )

    def leave(self, done_B: np.ndarray) -> None:
        """Let sources that are done leave the batch, once they are a quarter of it. [spec 12.29]

        Args:
            done_B: True for sources, of all, whose texts cannot change any more (B,).
        """
        places = np.flatnonzero(~done_B[self.sources])
        if self._keep is not None and 0 < len(places) <= (1 - LEAVING) * len(self.sources):
            self._keep(places)
            self.sources = self.sources[places]
