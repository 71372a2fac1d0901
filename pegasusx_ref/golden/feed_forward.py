"""Linear maps and activations, the parts of the feed-forward sublayer. [spec 5]"""

import math

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Map the last axis of `x` linearly, y = x W^T + b. [spec 5.1]

    Args:
        x: (..., in features).
        weight: (out features, in features), the layout of checkpoints.
        bias: (out features,), or None: attention projections and the head have none.

    Returns:
        (..., out features).

    Source: HF `nn.Linear`.
    """
    y = x @ weight.T
    return y if bias is None else y + bias


def relu(x: np.ndarray) -> np.ndarray:
    """Compute max(x, 0), the activation of the published checkpoints. [spec 5.2]"""
    return np.maximum(x, 0)


def gelu(x: np.ndarray) -> np.ndarray:
    """Compute x times the standard normal distribution function, x (1 + erf(x / sqrt 2)) / 2. [spec 5.3]

    Source: arXiv 1606.08415; HF "gelu".
    """
    from scipy.special import erf  # here, so that importing the package does not import scipy

    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Approximate `gelu` by x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2. [spec 5.4]

    Source: arXiv 1606.08415 section 2; HF "gelu_new" and "gelu_pytorch_tanh"; what Flax computes for "gelu".
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def silu(x: np.ndarray) -> np.ndarray:
    """Compute x times the logistic function, x / (1 + exp(-x)), as x (1 + tanh(x / 2)) / 2. [spec 5.5]

    The tanh form is the same function and cannot overflow.

    Source: arXiv 1702.03118; HF "silu" and "swish".
    """
    return 0.5 * x * (1 + np.tanh(0.5 * x))


ACTIVATIONS = {
    "relu": relu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "silu": silu,
    "swish": silu,
}


def activation(x: np.ndarray, name: str) -> np.ndarray:
    """Apply the activation that the configuration names. [spec 5.6]

    Args:
        x: an array of any shape.
        name: a key of `ACTIVATIONS`.

    Returns:
        An array of the shape and dtype of `x`.

    Source: HF `ACT2FN`.
    """
    return ACTIVATIONS[name](x)
