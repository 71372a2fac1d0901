"""From the decoder's last hidden state to probabilities and the training loss. [spec 11]"""

import numpy as np

IGNORED_LABEL = -100


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the logarithm of the softmax without overflow or loss of small probabilities. [spec 11.1]

    Args:
        logits: (..., V).

    Returns:
        Log-probabilities (..., V).
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_softmax_backward(grad: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """Pass gradients through a log-softmax: all of a row come back through the normalization. [spec 19.9]

    Args:
        grad: gradients of the log-probabilities (..., V).
        log_probs: the log-probabilities (..., V).

    Returns:
        Gradients of the logits (..., V).
    """
    return grad - np.exp(log_probs) * grad.sum(axis=-1, keepdims=True)


def cross_entropy(logits_BLV: np.ndarray, labels_BL: np.ndarray, label_smoothing: float = 0.0) -> np.ndarray:
    """Average the negative log-probability of the labels, skipping those that are -100. [spec 11.2]

    Padding counts like any other label unless it is -100. With label smoothing e, a label has the probability 1 - e
    + e / V, and every other token e / V.

    Args:
        logits_BLV: scores of the vocabulary at every target position (B, L, V).
        labels_BL: token ids in [0, V) or -100 (B, L); at least one is not -100.
        label_smoothing: e, from 0 to 1.

    Returns:
        The loss, a scalar array, in nats a label.

    Source: HF `CrossEntropyLoss` in `PegasusXForConditionalGeneration.forward`.
    """
    counted_BL = labels_BL != IGNORED_LABEL
    targets_BL1 = np.where(counted_BL, labels_BL, 0)[:, :, None]
    log_probs_BLV = log_softmax(logits_BLV)
    log_probs_BL = np.take_along_axis(log_probs_BLV, targets_BL1, axis=2)[:, :, 0]
    if label_smoothing:
        log_probs_BL = (1 - label_smoothing) * log_probs_BL + label_smoothing * log_probs_BLV.mean(axis=2)
    return -log_probs_BL[counted_BL].mean()


def cross_entropy_backward(logits_BLV: np.ndarray, labels_BL: np.ndarray, label_smoothing: float = 0.0) -> np.ndarray:
    """Compute the gradients of the loss by the logits: probabilities minus wanted probabilities, averaged. [spec 19.10]

    Args:
        logits_BLV: see `cross_entropy`.
        labels_BL: see `cross_entropy`.
        label_smoothing: see `cross_entropy`.

    Returns:
        Gradients of the logits (B, L, V), 0 where a label is -100.
    """
    counted_BL = labels_BL != IGNORED_LABEL
    is_label_BLV = labels_BL[:, :, None] == np.arange(logits_BLV.shape[2])
    wanted_BLV = (1 - label_smoothing) * is_label_BLV + label_smoothing / logits_BLV.shape[2]
    grad_BLV = np.where(counted_BL[:, :, None], -wanted_BLV / counted_BL.sum(), 0).astype(logits_BLV.dtype)
    return log_softmax_backward(grad_BLV, log_softmax(logits_BLV))


def shift_tokens_right(labels_BL: np.ndarray, pad_token_id: int, decoder_start_token_id: int) -> np.ndarray:
    """Shift the labels right by one, so that the decoder sees the tokens before the one it has to predict. [spec 11.3]

    Args:
        labels_BL: token ids, -100 where no loss is taken (B, L).
        pad_token_id: takes the place of -100.
        decoder_start_token_id: the first input token.

    Returns:
        Decoder input ids (B, L).

    Source: HF `shift_tokens_right`.
    """
    ids_BL = np.roll(labels_BL, 1, axis=1)
    ids_BL[:, 0] = decoder_start_token_id
    return np.where(ids_BL == IGNORED_LABEL, pad_token_id, ids_BL)
