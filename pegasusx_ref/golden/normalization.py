"""Layer normalization. [spec 4]"""

import numpy as np


def layer_norm(x_BTD: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray, eps: float) -> np.ndarray:
    """Normalize every token to mean 0 and variance 1 over its features, then scale and shift. [spec 4.1]

    The variance is the biased one (divided by D) of the centred values, and eps is added inside the square root. Where
    the variance overflows, the token's result is NaN.

    Args:
        x_BTD: hidden states (B, T, D).
        weight_D: scale of each feature (D,).
        bias_D: shift of each feature (D,).
        eps: added to the variance; 1e-5 in HF, 1e-12 in the paper's Flax code.

    Returns:
        Normalized hidden states (B, T, D).

    Source: arXiv 1607.06450; HF `nn.LayerNorm`.
    """
    centered_BTD = x_BTD - x_BTD.mean(axis=-1, keepdims=True)
    variance_BT1 = (centered_BTD**2).mean(axis=-1, keepdims=True)
    variance_BT1 = np.where(np.isfinite(variance_BT1), variance_BT1, np.nan)  # x / inf = 0 would hide an overflow
    return centered_BTD / np.sqrt(variance_BT1 + eps) * weight_D + bias_D
