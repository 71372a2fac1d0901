"""The check of each step that the model's logits are finite: NaN would pass every comparison of a search. [spec 12]"""

import numpy as np

from pegasusx_ref.backend import Array, Backend
from pegasusx_ref.errors import NumericsError
from pegasusx_ref.generation.history import NextLogits


class FiniteLogits:
    """The model's logits in float32, step by step, and the check that they are finite.

    Args:
        next_logits: the model.
        ops: the backend of the logits.
    """

    def __init__(self, next_logits: NextLogits, ops: Backend) -> None:
        self._next_logits, self._ops = next_logits, ops
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
            ended_BL: True for rows whose text has ended (B, L), or (B, 1): their logits do not matter.

        Raises:
            NumericsError: a logit of another row is NaN or infinite.
        """
        if np.isfinite(self._ops.to_numpy(self._range)):
            return
        logits_BLV = self._ops.to_numpy(self._ops.to_float32(self._logits_BLV))
        broken_BL = ~np.isfinite(logits_BLV).all(axis=2) & ~ended_BL
        if broken_BL.any():
            rows = np.flatnonzero(broken_BL.any(axis=1)).tolist()
            raise NumericsError(
                f"the logits of token {self._step} are not finite in rows {rows} of the batch (of {len(broken_BL)})"
            )
