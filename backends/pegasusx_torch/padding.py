"""The lengths of padded texts, computed once: the model passes the same mask to every layer."""

from torch import Tensor


class SourceLengths:
    """Computes the lengths of right-padded texts, and caches those of the last mask for the next layer."""

    def __init__(self) -> None:
        self._mask_BT: Tensor | None = None
        self._lengths: list[int] | None = None

    def get(self, key_mask_BT: Tensor | None, x_BHTF: Tensor) -> list[int] | None:
        """Return the number of real tokens in each batch row, or None if padding precedes a real token.

        Args:
            key_mask_BT: True where a token is real (B, T); None means everywhere.
            x_BHTF: for B and T if there is no mask.
        """
        if key_mask_BT is None:
            return [x_BHTF.shape[2]] * x_BHTF.shape[0]
        if key_mask_BT is not self._mask_BT:
            is_right_padded = bool((key_mask_BT[:, :-1] >= key_mask_BT[:, 1:]).all())
            self._lengths = key_mask_BT.sum(dim=1).tolist() if is_right_padded else None
            self._mask_BT = key_mask_BT
        return self._lengths
