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


def layer_norm_backward(
    grad_BTD: np.ndarray, x_BTD: np.ndarray, weight_D: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pass gradients through a LayerNorm; mean and deviation of a token depend on all its features. [spec 19.3]

    Args:
        grad_BTD: gradients of the normalized hidden states (B, T, D).
        x_BTD: hidden states (B, T, D).
        weight_D: scale of each feature (D,).
        eps: added to the variance.

    Returns:
        Gradients of the hidden states (B, T, D), of the scale (D,) and of the shift (D,).
    """
    centered_BTD = x_BTD - x_BTD.mean(axis=-1, keepdims=True)
    inverse_BT1 = 1 / np.sqrt((centered_BTD**2).mean(axis=-1, keepdims=True) + eps)
    normed_BTD = centered_BTD * inverse_BT1

    scaled_BTD = grad_BTD * weight_D
    through_mean_BT1 = scaled_BTD.mean(axis=-1, keepdims=True)
    through_deviation_BTD = normed_BTD * (scaled_BTD * normed_BTD).mean(axis=-1, keepdims=True)
    grad_x_BTD = inverse_BT1 * (scaled_BTD - through_mean_BT1 - through_deviation_BTD)
    return grad_x_BTD, (grad_BTD * normed_BTD).sum(axis=(0, 1)), grad_BTD.sum(axis=(0, 1))
