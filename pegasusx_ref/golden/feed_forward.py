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


def linear_backward(grad: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pass gradients through a linear map: dx = dy W, dW = dy^T x and db = sum dy, over all tokens. [spec 19.4]

    Args:
        grad: gradients of the result (..., out features).
        x: (..., in features).
        weight: (out features, in features).

    Returns:
        Gradients of x, of the weight, and of a bias.
    """
    rows = grad.reshape(-1, grad.shape[-1])
    return grad @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(axis=0)


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


def gelu_slope(x: np.ndarray) -> np.ndarray:
    """Compute the derivative of `gelu`: the normal distribution function plus x times its density."""
    from scipy.special import erf

    return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def gelu_tanh_slope(x: np.ndarray) -> np.ndarray:
    """Compute the derivative of `gelu_tanh`."""
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


def silu_slope(x: np.ndarray) -> np.ndarray:
    """Compute the derivative of `silu`: with the logistic function s, s + x s (1 - s)."""
    s = 0.5 * (1 + np.tanh(0.5 * x))
    return s + x * s * (1 - s)


SLOPES = {
    "relu": lambda x: (x > 0).astype(x.dtype),  # 0 at 0, as in torch and JAX
    "gelu": gelu_slope,
    "gelu_new": gelu_tanh_slope,
    "gelu_pytorch_tanh": gelu_tanh_slope,
    "silu": silu_slope,
    "swish": silu_slope,
}


def activation_backward(grad: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
    """Multiply gradients with the slope of the activation. [spec 19.5]

    Args:
        grad: gradients of the result.
        x: what the activation was applied to.
        name: a key of `SLOPES`.

    Returns:
        Gradients of x.
    """
    return grad * SLOPES[name](x)
