"""What a mask says, asked once: the model passes the same one to every layer."""

from torch import Tensor


class Lengths:
    """Finds the lengths of a batch's texts, and remembers those of the last mask, for the next layer to ask."""

    def __init__(self) -> None:
        self._mask_BT: Tensor | None = None
        self._lengths: list[int] | None = None

    def of(self, key_mask_BT: Tensor | None, x_BHTF: Tensor) -> list[int] | None:
        """Give the number of real tokens of each text where padding only follows them, None where it stands elsewhere.

        Args:
            key_mask_BT: True where a token is real (B, T); None means everywhere.
            x_BHTF: for B and T where there is no mask.
        """
        if key_mask_BT is None:
            return [x_BHTF.shape[2]] * x_BHTF.shape[0]
        if key_mask_BT is not self._mask_BT:
            is_prefix = bool((key_mask_BT[:, :-1] >= key_mask_BT[:, 1:]).all())
            self._lengths = key_mask_BT.sum(dim=1).tolist() if is_prefix else None
            self._mask_BT = key_mask_BT
        return self._lengths
