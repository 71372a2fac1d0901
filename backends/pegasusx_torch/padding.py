"""The lengths of padded texts, computed once: the model passes the same mask to every layer."""

from torch import Tensor


class SourceLengths:
    """Computes the lengths of right-padded texts, and caches those of the last mask for the next layer.

    Threads may share an object: mask and lengths are published together, so a thread never gets another mask's lengths.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor | None, list[int] | None] = (None, None)

    def get(self, key_mask_BT: Tensor | None, x_BHTF: Tensor) -> list[int] | None:
        """Return the number of real tokens in each batch row, or None if padding precedes a real token.

        Args:
            key_mask_BT: True where a token is real (B, T); None means everywhere.
            x_BHTF: for B and T if there is no mask.
        """
        if key_mask_BT is None:
            return [x_BHTF.shape[2]] * x_BHTF.shape[0]
        last_mask, lengths = self._last  # of any shape
        if last_mask is not key_mask_BT:
            is_right_padded = bool((key_mask_BT[:, :-1] >= key_mask_BT[:, 1:]).all())
            lengths = key_mask_BT.sum(dim=1).tolist() if is_right_padded else None
            self._last = key_mask_BT, lengths
        return lengths
